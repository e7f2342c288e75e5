// Instructions that this processor lacks, by SIMDe (https://github.com/simd-everywhere/simde), for kernels_body.h.
//
// Given with -include to a kernel that is compiled for AVX2 alone: what the intrinsics mean is computed in plain code,
// and the macros then say that the instruction sets are there, so that the body takes those ways. -DEMULATE=512 for
// AVX-512 with VNNI, 513 with BF16 too, 256 for VNNI in 256 bits.

#include <immintrin.h>  // before the macros, which would change it

#include <simde/x86/avx512.h>

#if EMULATE == 256
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
#else
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32 simde_mm512_dpbusd_epi32
#define _mm512_set1_epi32 simde_mm512_set1_epi32
#define _mm512_loadu_si512 simde_mm512_loadu_si512
#define _mm512_maskz_cvtph_ps(mask, half) emulated_cvtph_ps(half)  // of all lanes, as it is used

static inline __m512 emulated_cvtph_ps(__m256i half) {
    __m256 part[2] = {_mm256_cvtph_ps(_mm256_extracti128_si256(half, 0)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
    __m512 whole;
    __builtin_memcpy(&whole, part, sizeof whole);
    return whole;
}
#endif

#if EMULATE == 513
#define __AVX512BF16__ 1
#define __m512bh simde__m512bh
#define _mm512_dpbf16_ps simde_mm512_dpbf16_ps
#endif
