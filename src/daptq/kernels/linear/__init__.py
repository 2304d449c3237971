"""The linear operations with packed integer weights; every public file is a backend.

Backends for quantized activations share the arithmetic of `_arithmetic.py` and differ only in how they multiply
integers, so their results are equal bit for bit, and which one is fastest decides nothing but the time. What each one
trades:

    backend           resident weight                        time
    avx2              0.5 bytes at 4 bits, 0.25 at 2, 1 at   faster than float32 from one row to hundreds; needs a
                      8; inputs padded to multiples of 32,   C++ compiler and AVX2
                      outputs to multiples of 16
    reference         packed, 0.5 bytes at 4 bits            the slowest: unpacks and multiplies int32 in every call
    float32-carried   int8, 1 byte                           a float32 product, plus copying one layer to float32
    fbgemm            int8, 1 byte and padding of the input  the fastest of wide layers, faster than float32 there;
                      features to a multiple of 512          on narrow ones its padding costs more than bfloat16
    avx2-w4a16        0.5 bytes up to 4 bits, 1 at 8         floating-point activations: at a few rows faster than
                                                             float32 where the weight does not fit the cache
    triton-w4a8,      packed                                 CUDA; not measured
    triton-w4a16

``benchmarks/linear_backends.py`` measures them, and two products of integers that are not used because they are slower
at these shapes on processors without int8 dot-product instructions: torch._int_mm and oneDNN's quantized linear layer.
"""
