/* index._kernels: exact Hamming search over bit-sliced codes, and cosine distances on stored vectors.
 *
 * Called by kernels.py, search_table.py and lists.py, which check types and shapes; here only sizes are checked. The
 * interpreter lock is released while a kernel runs.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

#include "scan.h"
#include "measure.h"
#include "instruction_sets.h"
#include "search.h"
#include "rank.h"
#include "lists.h"
#include "arguments.h"

/* Collect the nearest rows of each query; what is returned ends with end_queries(). NULL when out of memory. */
static struct query *collect_nearest(const struct call *call)
{
    const int words = (call->layout.bit_count + 63) / 64, limit_count = call->layout.sums_count - 1;
    struct plan plan = {0};
    void *aligned = NULL;
    if (posix_memalign(&aligned, 64, (call->query_count + 1) * sizeof(struct query)))
        return NULL;
    struct query *queries = aligned;
    int is_out_of_memory = 0;
    for (int64_t i = 0; i < call->query_count; i++) {
        const int most = call->max_distances ? call->max_distances[i] : call->layout.bit_count;
        is_out_of_memory |= !prepare(&call->layout, &queries[i], call->codes + i * words, call->wanted, most,
                                     call->limits ? call->limits + i * limit_count : NULL);
        queries[i].has_scope = call->query_scopes != NULL;
        queries[i].scope = call->query_scopes ? call->query_scopes[i] : 0;
    }
    if (!is_out_of_memory && make_plan(&plan, call->spans, call->span_count))
        search(&call->layout, call->blocks, &plan, call->span_count == 1, &call->filter, queries, call->query_count);
    else
        is_out_of_memory = 1;
    free(plan.visits);
    free(plan.masks);
    for (int64_t i = 0; i < call->query_count; i++)
        is_out_of_memory |= queries[i].failed;
    if (!is_out_of_memory)
        return queries;
    end_queries(queries, call->query_count);
    return NULL;
}

/* Per query the rows with the nearest codes, and their distances in bits. */
static PyObject *nearest(PyObject *self, PyObject *args)
{
    PyObject *o_table, *o_search, *o_rows, *o_distances, *o_counts;
    struct buffers buffers = {.count = 0};
    struct call call;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOOO", &o_table, &o_search, &o_rows, &o_distances, &o_counts))
        return NULL;
    if (!read_call(&call, &buffers, o_table, o_search))
        goto done;
    int64_t *rows = WRITE(o_rows, call.query_count * call.wanted * 8, "rows");
    int32_t *distances = rows ? WRITE(o_distances, call.query_count * call.wanted * 4, "distances") : NULL;
    int64_t *counts = distances ? WRITE(o_counts, call.query_count * 8, "counts") : NULL;
    if (!counts)
        goto done;
    struct query *queries;
    Py_BEGIN_ALLOW_THREADS
    queries = collect_nearest(&call);
    for (int64_t i = 0; queries && i < call.query_count; i++)
        counts[i] = finish(&queries[i], &call.layout, rows + i * call.wanted, distances + i * call.wanted);
    if (queries)
        end_queries(queries, call.query_count);
    Py_END_ALLOW_THREADS
    result = queries ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    release(&buffers);
    return result;
}

/* What one query of a ranked search found: `count` rows, of `examined` candidates. */
struct answer {
    struct ranked *rows;
    int64_t count, examined;
    int worst; /* distance in bits of the farthest candidate; -1 without one */
};

/* [(cosine distance, entry id, distance in bits, row), ...], the number of candidates, the farthest one's bits */
static PyObject *object_of(const struct answer *answer)
{
    PyObject *rows = PyList_New(answer->count);
    for (int64_t i = 0; rows && i < answer->count; i++) {
        const struct ranked *row = &answer->rows[i];
        PyObject *item = Py_BuildValue("dLiL", (double)row->distance, (long long)row->entry_id, row->bits,
                                       (long long)row->row);
        if (!item || PyList_SetItem(rows, i, item) < 0) {
            Py_DECREF(rows);
            return NULL;
        }
    }
    return rows ? Py_BuildValue("NLi", rows, (long long)answer->examined, answer->worst) : NULL;
}

/* What choose_spans() says, in memory that free() ends; NULL when out of memory. */
static struct span *spans_of(const struct choice *choice, const float *query, int64_t *span_count)
{
    struct span *spans = malloc(choice->lists.list_count * sizeof *spans);
    float *unit = unit_query(query, choice->lists.dim);
    *span_count = -1;
    if (spans && unit)
        *span_count = choose_spans(&choice->lists, unit, (float)choice->margin, choice->least, spans);
    free(unit);
    if (*span_count >= 0)
        return spans;
    free(spans);
    return NULL;
}

/* The spans of rows that a query searches, as bytes. */
static PyObject *spans_near(PyObject *self, PyObject *args)
{
    PyObject *o_choice, *o_query;
    struct buffers buffers = {.count = 0};
    struct choice choice;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OO", &o_choice, &o_query))
        return NULL;
    const float *query = NULL;
    if (!read_choice(&choice, &buffers, o_choice) || !(query = READ(o_query, choice.lists.dim * 4, "query")))
        goto done;
    struct span *spans;
    int64_t span_count;
    Py_BEGIN_ALLOW_THREADS
    spans = spans_of(&choice, query, &span_count);
    Py_END_ALLOW_THREADS
    if (spans)
        result = PyBytes_FromStringAndSize((const char *)spans, span_count * (Py_ssize_t)sizeof *spans);
    else
        PyErr_NoMemory();
    free(spans);
done:
    release(&buffers);
    return result;
}

/* Per query the nearest rows by exact distance among those with the nearest codes; of the lists near it, where it is
 * one query and there are lists. */
static PyObject *rank(PyObject *self, PyObject *args)
{
    PyObject *o_table, *o_search, *o_queries, *o_choice;
    long long exact_count;
    struct buffers buffers = {.count = 0};
    struct call call;
    struct choice choice;
    struct answer *answers = NULL;
    struct span *spans = NULL;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOLO", &o_table, &o_search, &o_queries, &exact_count, &o_choice))
        return NULL;
    if (!read_call(&call, &buffers, o_table, o_search))
        goto done;
    const int has_choice = o_choice != Py_None;
    if (has_choice && !read_choice(&choice, &buffers, o_choice))
        goto done;
    const int64_t dim = call.vectors.dim;
    const float *query_vectors = READ(o_queries, call.query_count * dim * 4, "queries");
    if (!query_vectors)
        goto done;
    if (exact_count < 1 || !call.vectors.halves || !call.entry_ids ||
        (has_choice && (call.query_count != 1 || choice.lists.dim != dim ||
                        choice.lists.bounds[choice.lists.list_count] != call.row_count))) {
        PyErr_SetString(PyExc_ValueError, "exact_count is out of range, there are no vectors, or lists not of one query and these rows");
        goto done;
    }
    int is_out_of_memory;
    Py_BEGIN_ALLOW_THREADS
    if (has_choice) {
        spans = spans_of(&choice, query_vectors, &call.span_count);
        call.spans = spans;
    }
    struct query *queries = has_choice && !spans ? NULL : collect_nearest(&call);
    answers = calloc(call.query_count + 1, sizeof *answers);
    is_out_of_memory = !queries || !answers;
    for (int64_t i = 0; !is_out_of_memory && i < call.query_count; i++) {
        struct answer *answer = &answers[i];
        const int64_t size = queries[i].size + 1;
        int64_t *rows = malloc(size * sizeof *rows);
        int32_t *bits = malloc(size * sizeof *bits);
        is_out_of_memory = !rows || !bits;
        if (!is_out_of_memory) {
            answer->examined = finish(&queries[i], &call.layout, rows, bits);
            answer->worst = answer->examined ? bits[answer->examined - 1] : -1;
            answer->rows = rank_candidates(&call.vectors, query_vectors + i * dim, rows, bits, answer->examined,
                                           exact_count, call.entry_ids, &answer->count);
            is_out_of_memory = !answer->rows;
        }
        free(rows);
        free(bits);
    }
    if (queries)
        end_queries(queries, call.query_count);
    Py_END_ALLOW_THREADS
    if (is_out_of_memory) {
        PyErr_NoMemory();
    } else {
        result = PyList_New(call.query_count);
        for (int64_t i = 0; result && i < call.query_count; i++) {
            PyObject *item = object_of(&answers[i]);
            if (!item || PyList_SetItem(result, i, item) < 0)
                Py_CLEAR(result);
        }
    }
    for (int64_t i = 0; answers && i < call.query_count; i++)
        free(answers[i].rows);
    free(answers);
    free(spans);
done:
    release(&buffers);
    return result;
}

/* Add codes behind the first `row_count` rows. Readers may search those meanwhile: no bit of theirs changes. */
static PyObject *append(PyObject *self, PyObject *args)
{
    PyObject *o_blocks, *o_codes;
    int bit_count;
    long long row_count, added;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OiLOL", &o_blocks, &bit_count, &row_count, &o_codes, &added))
        return NULL;
    if (bit_count < 1 || bit_count > MAX_BITS || row_count < 0 || added < 0)
        return PyErr_Format(PyExc_ValueError, "bit_count or a count is out of range");
    const struct layout layout = layout_of(bit_count);
    const int words = (bit_count + 63) / 64;
    const int64_t block_count = (row_count + added + BLOCK_ROWS - 1) / BLOCK_ROWS;
    uint64_t *blocks = WRITE(o_blocks, block_count * layout.block_words * 8, "blocks");
    const uint64_t *codes = blocks ? READ(o_codes, added * words * 8, "codes") : NULL;
    if (!codes)
        goto done;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < added; i++) {
        const int64_t row = row_count + i;
        const uint64_t *code = codes + i * words;
        uint64_t *planes = blocks + row / BLOCK_ROWS * layout.block_words + row % BLOCK_ROWS / 64;
        const uint64_t bit = UINT64_C(1) << (row % 64);
        int weight = 0, s = 0;
        for (int word = 0; word < words; word++) {
            const int used = bit_count - 64 * word;
            const uint64_t bits = used < 64 ? code[word] & ((UINT64_C(1) << used) - 1) : code[word];
            for (uint64_t left = bits; left; left &= left - 1)
                planes[(64 * word + __builtin_ctzll(left)) * PLANE_WORDS] |= bit;
            weight += __builtin_popcountll(bits);
            if (64 * (word + 1) >= layout.sums[s].end) {
                uint64_t *sum = planes + layout.sums[s].offset;
                for (int j = 0; j < layout.counter_count; j++)
                    if ((weight >> j) & 1)
                        sum[PLANE_WORDS * j] |= bit;
                s++;
            }
        }
    }
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    release(&buffers);
    return result;
}

static PyObject *distances(PyObject *args, int value_bytes)
{
    PyObject *o_vectors, *o_offsets, *o_query, *o_out;
    long long dim, row_count, count;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLOLOO", &o_vectors, &row_count, &dim, &o_offsets, &count, &o_query, &o_out))
        return NULL;
    if (row_count < 0 || dim < 0 || count < 0 || (o_offsets == Py_None && count > row_count))
        return PyErr_Format(PyExc_ValueError, "a count is out of range");
    const void *vectors = READ(o_vectors, row_count * dim * value_bytes, "vectors");
    const float *query = vectors ? READ(o_query, dim * 4, "query") : NULL;
    float *out = query ? WRITE(o_out, count * 4, "out") : NULL;
    if (!out)
        goto done;
    const int64_t *offsets = NULL;
    if (o_offsets != Py_None) {
        if (!(offsets = READ(o_offsets, count * 8, "offsets")))
            goto done;
        for (int64_t i = 0; i < count; i++)
            if (offsets[i] < 0 || offsets[i] >= row_count) {
                PyErr_Format(PyExc_IndexError, "offset %lld of %lld rows", (long long)offsets[i], row_count);
                goto done;
            }
    }
    float *unit;
    Py_BEGIN_ALLOW_THREADS
    unit = unit_query(query, dim);
    if (unit && value_bytes == 2)
        chosen->kernels->half_distances(vectors, dim, offsets, count, unit, out);
    else if (unit)
        chosen->kernels->byte_distances(vectors, dim, offsets, count, unit, out);
    free(unit);
    Py_END_ALLOW_THREADS
    result = unit ? Py_NewRef(Py_None) : PyErr_NoMemory();
done:
    release(&buffers);
    return result;
}

static PyObject *half_distances(PyObject *self, PyObject *args)
{
    return distances(args, 2);
}

static PyObject *byte_distances(PyObject *self, PyObject *args)
{
    return distances(args, 1);
}

static PyObject *quantise(PyObject *self, PyObject *args)
{
    PyObject *o_vectors, *o_out;
    long long row_count, dim;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLO", &o_vectors, &row_count, &dim, &o_out))
        return NULL;
    const uint16_t *vectors = READ(o_vectors, row_count * dim * 2, "vectors");
    int8_t *out = vectors ? WRITE(o_out, row_count * dim, "out") : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        chosen->kernels->quantise(vectors, row_count, dim, out);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

/* Sum, per code, the table's entries for its bytes, in the order of the bytes. */
static PyObject *table_scores(PyObject *self, PyObject *args)
{
    PyObject *o_codes, *o_table, *o_out;
    long long row_count, width;
    struct buffers buffers = {.count = 0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "OLLOO", &o_codes, &row_count, &width, &o_table, &o_out))
        return NULL;
    const uint8_t *codes = READ(o_codes, row_count * width, "codes");
    const float *table = codes ? READ(o_table, width * 256 * 4, "table") : NULL;
    float *out = table ? WRITE(o_out, row_count * 4, "out") : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t row = 0; row < row_count; row++) {
            float score = 0;
            for (int64_t i = 0; i < width; i++)
                score += table[256 * i + codes[row * width + i]];
            out[row] = score;
        }
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    release(&buffers);
    return result;
}

static PyObject *block_words(PyObject *self, PyObject *args)
{
    int bit_count;
    if (!PyArg_ParseTuple(args, "i", &bit_count))
        return NULL;
    if (bit_count < 1 || bit_count > MAX_BITS)
        return PyErr_Format(PyExc_ValueError, "bit_count is out of range");
    return PyLong_FromLongLong(layout_of(bit_count).block_words);
}

static PyObject *instruction_sets(PyObject *self, PyObject *args)
{
    PyObject *names = PyTuple_New(supported_count);
    for (int i = 0; names && i < supported_count; i++) {
        PyObject *name = PyUnicode_FromString(supported[i].name);
        if (!name || PyTuple_SetItem(names, i, name) < 0) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

static PyObject *choose(PyObject *self, PyObject *args)
{
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    for (int i = 0; i < supported_count; i++)
        if (!strcmp(supported[i].name, name)) {
            chosen = &supported[i];
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "%s is not an instruction set of this machine", name);
}

static PyMethodDef methods[] = {
    {"nearest", nearest, METH_VARARGS, NULL},
    {"append", append, METH_VARARGS, NULL},
    {"rank", rank, METH_VARARGS, NULL},
    {"spans_near", spans_near, METH_VARARGS, NULL},
    {"half_distances", half_distances, METH_VARARGS, NULL},
    {"byte_distances", byte_distances, METH_VARARGS, NULL},
    {"quantise", quantise, METH_VARARGS, NULL},
    {"table_scores", table_scores, METH_VARARGS, NULL},
    {"block_words", block_words, METH_VARARGS, NULL},
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "index._kernels", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    detect();
    return PyModule_Create(&module);
}
