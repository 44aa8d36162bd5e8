"""The compiled part; everything else is in pyproject.toml."""

from setuptools import Extension, setup

HEADERS = (
    *("arguments", "instruction_sets", "kernels_template", "lists"),
    *("measure", "rank", "scan", "search"),
)

setup(
    ext_modules=[
        Extension(
            "index._kernels",
            sources=["index/native/module.c"],
            depends=[f"index/native/{name}.h" for name in HEADERS],
            extra_compile_args=["-O3", "-fno-math-errno", "-Wno-psabi"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
