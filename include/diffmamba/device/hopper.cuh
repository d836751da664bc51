// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>  // CUtensorMap

#include <cstdint>  // std::uint64_t

#include "diffmamba/core/dtype.hpp"
#include "diffmamba/device/cuda.cuh"

/// What only Hopper's GPUs understand (compiled for sm_90a): tiles that the copy engine brings into shared memory while
/// barriers count their bytes, and products that a warpgroup (128 threads) issues and waits for later.
///
/// Tiles have rows of 64 numbers of 16 bits (128 bytes) and begin at multiples of 1024 bytes; units of 16 bytes are
/// exchanged within a row by the row's number, as mma::swizzled<64> says. Wider matrices are several tiles.
namespace diffmamba::hopper {

/// Whether kernels guarded by DIFFMAMBA_SM90A have a body here.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DIFFMAMBA_SM90A 1
#endif

// --- Barriers in shared memory ---------------------------------------------------------------------------------------

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
__device__ inline void initialise(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// Makes initialised barriers known to the copy engine.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Every thread that read or wrote what the barrier guards arrives for itself: one lane for its warp, after __syncwarp,
/// is not faster, and compute-sanitizer's racecheck does not see that order.
__device__ inline void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and lets the barrier wait for `bytes` of copies too.
__device__ inline void arrive_expecting(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Waits for the phase of this parity to end.
__device__ inline void wait(std::uint64_t* barrier, unsigned parity) {
  unsigned done = 0;
  while (done == 0)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}
/// A barrier of some warps of a block, which may call it from different places; number 0 is __syncthreads.
__device__ inline void synchronize(int number, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
/// What this thread stored into shared memory is there for the copy engine and the tensor cores, once a barrier has
/// been passed.
__device__ inline void publish_stores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Gives a warpgroup another number of registers per thread; all its threads call it. For kernels whose launch bounds
/// say how many blocks share a multiprocessor, with one branch for each role.
template <int Count, bool More>
__device__ inline void set_registers() {
  if constexpr (More)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

// --- The copy engine -------------------------------------------------------------------------------------------------

/// Brings the box at (c0, c1, c2, c3) of a tensor map; what lies outside of the tensor is zero.
__device__ inline void load_tile(void* shared, const CUtensorMap* map, std::uint64_t* barrier, int c0, int c1, int c2,
                                 int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
/// Writes a box; what lies outside of the tensor is not written.
__device__ inline void store_tile(const CUtensorMap* map, const void* shared, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until the stores of this thread have read their shared memory.
__device__ inline void wait_for_stores_to_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
/// Waits until the stores of this thread have been made.
__device__ inline void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/// Four 8 x 8 matrices of 16-bit numbers into shared memory, the counterpart of mma::load_matrices.
__device__ inline void store_matrices(void* row, unsigned r0, unsigned r1, unsigned r2, unsigned r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

// --- Products of a warpgroup -----------------------------------------------------------------------------------------

/// Registers written so far are there for the products that follow.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Ends a group of products.
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `Pending` groups are under way.
template <int Pending>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// Keeps the compiler from moving what it does with these registers across this place.
template <int Count>
__device__ inline void hold(float (&registers)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

/// Where a factor of a product lies: tiles side by side, one after another. Made once for a tile, by all lanes of a
/// warp together, so that the rest is arithmetic of whole warps: `+ units` moves on by as many 16 bytes, 2 for 16
/// columns, 128 for 16 rows, 512 for the next tile.
class Factor {
 public:
  /// Rows are the factor's rows, columns run along K.
  __device__ static Factor rows(const void* tile) { return Factor(tile, 1); }
  /// A second factor whose rows run along K.
  __device__ static Factor columns(const void* tile) { return Factor(tile, 8192 >> 4); }
  __device__ std::uint64_t operator+(int units) const {
    return (std::uint64_t{(1u << 30) | (1024 >> 4)} << 32) | (low_ + static_cast<unsigned>(units));
  }

 private:
  __device__ Factor(const void* tile, unsigned apart)
      : low_(__shfl_sync(0xffffffffu, (shared_address(tile) >> 4) | apart << 16, 0)) {}
  unsigned low_;  // the same in all lanes
};

#define DIFFMAMBA_D8(d, i)                                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define DIFFMAMBA_D32(d) DIFFMAMBA_D8(d, 0), DIFFMAMBA_D8(d, 8), DIFFMAMBA_D8(d, 16), DIFFMAMBA_D8(d, 24)
#define DIFFMAMBA_R32                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define DIFFMAMBA_R64                                                                                 \
  DIFFMAMBA_R32                                                                                       \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63"

/// d (64 x 64) = a (64 x 16, Factor::rows) b, plus d if `accumulate`. b is 16 x 64: Factor::columns if `Columns`, else
/// the transpose of Factor::rows. Thread t of the warpgroup has in d[4 j + k] row 16 (t / 32) + t % 32 / 4 +
/// 8 (k / 2), column 8 j + 2 (t % 4) + k % 2.
template <class T, bool Columns = false>
__device__ inline void multiply(float (&d)[32], std::uint64_t a, std::uint64_t b, bool accumulate) {
#define DIFFMAMBA_WGMMA(type)                                                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" DIFFMAMBA_R32 "}, %32, %33, p, 1, 1, 0, %35;\n}"                                                 \
               : DIFFMAMBA_D32(d)                                                                                    \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(Columns ? 1 : 0))
  if constexpr (std::is_same_v<T, bfloat16>)
    DIFFMAMBA_WGMMA("bf16");
  else
    DIFFMAMBA_WGMMA("f16");
#undef DIFFMAMBA_WGMMA
}

/// d (64 x 64) += a (64 x 16, in registers as for mma::multiply_add, 16 rows a warp) b (16 x 64, Factor::columns)
template <class T>
__device__ inline void multiply(float (&d)[32], const unsigned (&a)[4], std::uint64_t b) {
#define DIFFMAMBA_WGMMA(type)                                                                                      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" DIFFMAMBA_R32 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"                                   \
               : DIFFMAMBA_D32(d)                                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<T, bfloat16>)
    DIFFMAMBA_WGMMA("bf16");
  else
    DIFFMAMBA_WGMMA("f16");
#undef DIFFMAMBA_WGMMA
}
/// The same for 128 columns.
template <class T>
__device__ inline void multiply(float (&d)[64], const unsigned (&a)[4], std::uint64_t b) {
#define DIFFMAMBA_WGMMA(type)                                                                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type   \
               " {" DIFFMAMBA_R64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                      \
               : DIFFMAMBA_D32(d), DIFFMAMBA_D8(d, 32), DIFFMAMBA_D8(d, 40), DIFFMAMBA_D8(d, 48), DIFFMAMBA_D8(d, 56) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<T, bfloat16>)
    DIFFMAMBA_WGMMA("bf16");
  else
    DIFFMAMBA_WGMMA("f16");
#undef DIFFMAMBA_WGMMA
}
#undef DIFFMAMBA_R32
#undef DIFFMAMBA_R64
#undef DIFFMAMBA_D8
#undef DIFFMAMBA_D32

// --- On the host -----------------------------------------------------------------------------------------------------

/// Whether a kernel guarded by DIFFMAMBA_SM90A, with barriers in static shared memory, has its body on the current
/// stream's GPU: only the body has those barriers, so code for sm_90 (without the a) shows as empty.
template <class... Parameters>
bool has_body(void (*kernel)(Parameters...)) {
  const int device = cuda_runtime::current_stream().device;
  int major = 0, minor = 0;
  cuda_runtime::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                      "cudaDeviceGetAttribute");
  cuda_runtime::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                      "cudaDeviceGetAttribute");
  if (major != 9 || minor != 0) return false;
  cudaFuncAttributes attributes;
  cuda_runtime::check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.sharedSizeBytes > 0;
}

}  // namespace diffmamba::hopper
