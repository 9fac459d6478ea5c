// Words for code that host and device share.
//   MELODIA_HD      a function of both
//   MELODIA_ROLLED  before a loop that is short or rare: nvcc would write it out four times, and ptxas takes
//   long
#pragma once

#if defined(__CUDACC__)
#define MELODIA_HD __host__ __device__ inline
#define MELODIA_ROLLED _Pragma("unroll 1")
#else
#define MELODIA_HD inline
#define MELODIA_ROLLED
#endif
