/* The kernels for each instruction set, and which one this machine uses. */

struct kernels {
    void (*search)(const struct layout *, const uint64_t *, const struct plan *, int64_t, const struct filter *,
                   struct query *, int64_t);
    void (*half_distances)(const uint16_t *, int64_t, const int64_t *, int64_t, const float *, float *);
    void (*byte_distances)(const int8_t *, int64_t, const int64_t *, int64_t, const float *, float *);
    void (*quantise)(const uint16_t *, int64_t, int64_t, int8_t *);
};

static INLINE lanes portable_halves(const uint16_t *halves)
{
    lanes values;
    for (int i = 0; i < 16; i++)
        values[i] = half_to_float(halves[i]);
    return values;
}

/* Round to -127..127; what is not a number goes to an end. */
static INLINE int8_t to_byte(float value)
{
    value = value < 127 ? value : 127;
    value = value > -127 ? value : -127;
    return (int8_t)(value + (value < 0 ? -0.5f : 0.5f));
}

static INLINE lanes portable_bytes(const int8_t *bytes)
{
    lanes values;
    for (int i = 0; i < 16; i++)
        values[i] = bytes[i];
    return values;
}

#define PORTABLE_CSA(high, low, a, b, c)                       \
    do {                                                       \
        const vector csa_a = (a), csa_b = (b), csa_c = (c);    \
        const vector csa_ab = csa_a ^ csa_b;                   \
        (high) = (csa_a & csa_b) | (csa_ab & csa_c);           \
        (low) = csa_ab ^ csa_c;                                \
    } while (0)

static INLINE uint64_t any_word(const uint64_t *words, int count)
{
    uint64_t any = 0;
    for (int i = 0; i < count; i++)
        any |= words[i];
    return any;
}

#define PORTABLE_CSA_OF_NOT(high, low, a, b, c) PORTABLE_CSA(high, low, a, ~(b), c)
#define PORTABLE_CARRY(high, a, b, c) ((high) = ((a) & (b)) | (((a) ^ (b)) & (c)))

#define NAME(x) portable_##x
#define VECTOR_BYTES 16
#define ANY(v) any_word((const uint64_t *)&(v), 2)
#define CSA PORTABLE_CSA
#define CSA_OF_NOT PORTABLE_CSA_OF_NOT
#define CARRY PORTABLE_CARRY
#define HALVES_AT(p) portable_halves(p)
#define BYTES_AT(p) portable_bytes(p)
#include "kernels_template.h"

/* Only GCC compiles functions of one file for several instruction sets by these pragmas. */
#if defined(__x86_64__) && !defined(__clang__)
#define HAS_X86_KERNELS
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
static INLINE lanes avx2_halves(const uint16_t *halves)
{
    const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
    const __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + 8)));
    lanes values;
    memcpy(&values, &low, 32);
    memcpy((char *)&values + 32, &high, 32);
    return values;
}
static INLINE lanes avx2_bytes(const int8_t *bytes)
{
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + 8))));
    lanes values;
    memcpy(&values, &low, 32);
    memcpy((char *)&values + 32, &high, 32);
    return values;
}
#define NAME(x) avx2_##x
#define VECTOR_BYTES 32
#define ANY(v) (!_mm256_testz_si256((__m256i)(v), (__m256i)(v)))
#define CSA PORTABLE_CSA
#define CSA_OF_NOT PORTABLE_CSA_OF_NOT
#define CARRY PORTABLE_CARRY
#define HALVES_AT(p) avx2_halves(p)
#define BYTES_AT(p) avx2_bytes(p)
#include "kernels_template.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
/* One instruction for any function of three bits: 0x96 is their sum, 0xE8 their majority. */
#define AVX512_CSA(high, low, a, b, c)                                                         \
    do {                                                                                       \
        const __m512i csa_a = (__m512i)(a), csa_b = (__m512i)(b), csa_c = (__m512i)(c);        \
        (high) = (vector)_mm512_ternarylogic_epi64(csa_a, csa_b, csa_c, 0xE8);                 \
        (low) = (vector)_mm512_ternarylogic_epi64(csa_a, csa_b, csa_c, 0x96);                  \
    } while (0)
#define AVX512_CSA_OF_NOT(high, low, a, b, c)                                                  \
    do {                                                                                       \
        const __m512i csa_a = (__m512i)(a), csa_b = (__m512i)(b), csa_c = (__m512i)(c);        \
        (high) = (vector)_mm512_ternarylogic_epi64(csa_a, csa_b, csa_c, 0xB2);                 \
        (low) = (vector)_mm512_ternarylogic_epi64(csa_a, csa_b, csa_c, 0x69);                  \
    } while (0)
#define AVX512_CARRY(high, a, b, c) \
    ((high) = (vector)_mm512_ternarylogic_epi64((__m512i)(a), (__m512i)(b), (__m512i)(c), 0xE8))
#define NAME(x) avx512_##x
#define VECTOR_BYTES 64
#define ANY(v) (_mm512_test_epi64_mask((__m512i)(v), (__m512i)(v)) != 0)
#define CSA AVX512_CSA
#define CSA_OF_NOT AVX512_CSA_OF_NOT
#define CARRY AVX512_CARRY
#define HALVES_AT(p) ((lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define BYTES_AT(p) ((lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p)))))
#include "kernels_template.h"
#pragma GCC pop_options
#endif

struct instruction_set {
    const char *name;
    const struct kernels *kernels;
};

/* Best last. */
static struct instruction_set supported[3];
static int supported_count;
static const struct instruction_set *chosen;

static void detect(void)
{
    supported_count = 0;
    supported[supported_count++] = (struct instruction_set){"portable", &portable_kernels};
#ifdef HAS_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        supported[supported_count++] = (struct instruction_set){"avx2", &avx2_kernels};
    if (supported_count == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        supported[supported_count++] = (struct instruction_set){"avx512", &avx512_kernels};
#endif
    chosen = &supported[supported_count - 1];
}
