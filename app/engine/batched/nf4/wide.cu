// NF4 linear layers for 9 to 128 rows on Hopper's tensor cores: y[rows, N] = x[rows, K] @ W[N, K].T, bf16 in and out, fp32 sums.
//
// The weights are the A operand of wgmma (m64nNk16, M = output features), decoded in registers; x is the B operand, read by the
// tensor core from shared memory.  Weights come in the records that layout.py draws: 16 features x 64 inputs, lane after lane
// the fragments of mma m16n8k16, which are a warp's part of wgmma's A as well: warp w of a warpgroup takes record row 4 t + w
// of a tile t of 64 features.
//
// A block has WM x WK warpgroups that decode and multiply, and LW warps that bring x.
//   WM warpgroups share the block's T tiles out (tile m * WM + wm, at most MT each) and keep their sums in registers;
//   WK of them share each chunk of k (WK * KW blocks of 64);  C blocks of the grid share all of k.
//   Weights: each warp has a ring of D stages of its own (bulk copies, one mbarrier a stage) and waits for nobody else.
//   x: a ring of DX chunks for all, in wgmma's 128-byte swizzle, 64 k of a row in 128 bytes.  The k inside a block of 64 are
//   put into the records' order on the way: a lane holds 8 k of one row, 16 bytes, and its word j goes to piece 4 * half + j.
//
// Scales (nested as bitsandbytes has them: code[byte] * group + offset) are applied
//   after the product where PRESCALE is 0 (a block of 64 k goes to sums of its own, then tot += sums * scale, in fp32),
//   to the decoded weights where it is 1 (one more rounding to bf16, but no second set of sums: for 64 rows and more).
//
// A byte is looked up as a whole in a table of 256 pairs, one copy a bank, rows 256 bytes apart: the address is one prmt,
// byte << 8 | lane << 2.  The gaps of 128 bytes between the rows hold the table of scale codes in the same way.
//
// Partial sums of the C blocks go to a workspace; each block then adds its share of them in order: the same bits every time.
// It waits until the others have left theirs, so all blocks must be resident when C > 1: `wide.py` asks for no more than fit,
// and two launches that share workspace and counters must not run side by side.
//
// Dependent launch: weights are fetched while the kernel before ends; x, and all that is written, comes after it.
//
// Defined by whoever compiles: ROWS (of x, a multiple of 8), WM, WK, MT, KW, LW, XAHEAD (chunks of x on their way), PRESCALE,
// BLOCKS (that fit a multiprocessor), and perhaps REGS (registers a thread of those that multiply; the others give theirs up).
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
#define DEV __device__ __forceinline__

DEV u32 prmt(u32 a, u32 b, u32 selector) {
  u32 v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
  return v;
}

// NF4 in bf16: high and low bytes of codes 0 to 7 (N) and 8 to 15 (P).  Not in constant memory, which is cold at every launch
constexpr u32 HIGH_N0 = 0xbebfbfbf, HIGH_N1 = 0x00bdbebe, HIGH_P0 = 0x3e3e3e3d, HIGH_P1 = 0x3f3f3f3e;
constexpr u32 LOW_N0 = 0xca063280, LOW_N1 = 0x00ba3d92, LOW_P0 = 0xad7c25a3, LOW_P1 = 0x803910e2;
DEV u32 value(u32 code) {
  const u32 i = code & 7, high = code < 8 ? prmt(HIGH_N0, HIGH_N1, i) : prmt(HIGH_P0, HIGH_P1, i), low = code < 8 ? prmt(LOW_N0, LOW_N1, i) : prmt(LOW_P0, LOW_P1, i);
  return (high & 255) << 8 | (low & 255);
}

constexpr u32 RECORD = 528, TABLE = 65536;  // bytes
constexpr int GROUPS = WM * WK, WARPS = GROUPS * 4, THREADS = (WARPS + LW) * 32, CHUNK = WK * KW, SUMS = ROWS / 2, COLS = ROWS / 8;
constexpr u32 RUN = KW * RECORD, XBLOCK = ROWS * 128, XSTAGE = CHUNK * XBLOCK;
#ifdef REGS
static_assert(THREADS == 640, "96 registers a thread at the start, 480 for five threads");
#endif
static_assert(KW % 2 == 0 || PRESCALE, "the two sets of A fragments take turns within a chunk");

DEV u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV void bar_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory"); }
DEV void bar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
// without a branch: one between wgmma and its wait makes the compiler serialize
DEV void bar_arrive_if(bool yes, u32 bar) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %1, 0; @p mbarrier.arrive.shared::cta.b64 _, [%0]; }" ::"r"(bar), "r"((u32)yes) : "memory");
}
DEV void bar_expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory"); }
DEV void bar_wait(u32 bar, u32 parity) {  // gives up with an error rather than never
  asm volatile("{ .reg .pred p; .reg .u32 i; mov.u32 i, 0; wait: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra done;"
    " add.u32 i, i, 1; setp.gt.u32 p, i, 8000000; @p trap; bra wait; done: }" ::"r"(bar), "r"(parity) : "memory");
}
DEV void bulk_copy(u32 to, const u8* from, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(bar) : "memory");
}
DEV uint4 load_shared16(u32 a) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a));
  return v;
}
DEV u32 load_shared2(u32 a) {
  u32 v;
  asm volatile("{ .reg .b16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h; }" : "=r"(v) : "r"(a));
  return v;
}
DEV float load_shared_float(u32 a) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a));
  return v;
}
DEV void store_shared(u32 a, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(v) : "memory"); }
DEV void copy16(u32 to, const u16* from, bool real) {  // zeros where there is nothing to copy
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEV void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
DEV u32 pair(float low, float high) {
  u32 v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
DEV u32 times(u32 a, u32 b) {
  u32 v;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
DEV void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory"); }

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// keeps the compiler from using sums before the wait above
template <int N> DEV void hold(float* d) {
  #pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> DEV void wgmma(float* d, const u32* a, u64 b, int keep);
template <> DEV void wgmma<16>(float* d, const u32* a, u64 b, int keep) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %13, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p, 1, 1, 0; }"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
template <> DEV void wgmma<32>(float* d, const u32* a, u64 b, int keep) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %21, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, p, 1, 1, 0; }"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
template <> DEV void wgmma<64>(float* d, const u32* a, u64 b, int keep) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
template <> DEV void wgmma<128>(float* d, const u32* a, u64 b, int keep) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

struct Args {
  const u8* records;
  const u16* x;
  u16* y;
  float* partial;
  int* counters;
  const float *code, *group_scales, *offsets;
  const u16* bias;              // or null
  int N, blocks, rows;          // blocks: K / 64
  int T, C, D, DX, group_shift; // group scales change only at multiples of 1 << group_shift blocks, a power of two that divides both `blocks` and 256
  int across, chunks, extra;    // blocks of the grid for one part of k; chunks of k each part has, and how many parts have one more
  u32 magic;                    // x / across is the upper half of x * magic, across > 1
};

// Where a warp stands, and its part of shared memory
struct Place {
  u32 base, xring, raw, ring, bars, groups, xfull, xempty;  // addresses; ring and bars are the warp's own
  int tile0, tiles, first, last, wm, wk, w, lane;           // the block's tiles and chunks, the warp's place among the warps
};

// x: LW warps copy chunk after chunk, XAHEAD of them at a time, into a lane's own places in shared memory, and from there put k into
// the records' order and wgmma's swizzle.  A unit: 8 rows x 32 k, 16 bytes a lane.
DEV void bring_x(const Args& p, const Place& at, int loader) {
  constexpr int UNITS = CHUNK * COLS * 2 / LW;
  static_assert(LW % 2 == 0 && CHUNK * COLS * 2 % LW == 0, "units are shared out evenly");
  const int row = at.lane >> 2, q = at.lane & 3, half = loader & 1, pair = loader >> 1, K = p.blocks * 64;
  const u32 lane_at = (row << 7 | row << 4) + (q << 2), own = at.raw + loader * 512 + at.lane * 16;
  const u16* x = p.x + (size_t)row * K + half * 32 + q * 8;
  auto request = [&](int j, int slot) {
    if (j < at.last)
      #pragma unroll(UNITS > 8 ? 4 : UNITS)
      for (int i = 0; i < UNITS; i++) {
        const int u = i * (LW / 2) + pair, col = u % COLS * 8;
        const bool real = col + row < p.rows;
        copy16(own + (slot * UNITS + i) * LW * 512, real ? x + (size_t)col * K + (j * CHUNK + u / COLS) * 64 : p.x, real);
      }
    copy_commit();
  };
  asm volatile("griddepcontrol.wait;" ::: "memory");  // x is there from here on
  #pragma unroll 1
  for (int r = 0; r < XAHEAD; r++) request(at.first + r, r);
  __syncthreads();  // barriers are set up
  int stage = 0, slot = 0;
  u32 parity = 1;  // a fresh barrier counts parity 1 as done
  #pragma unroll 1
  for (int j = at.first; j < at.last; j++) {
    copy_wait<XAHEAD - 1>();
    bar_wait(at.xempty + stage * 8, parity);
    #pragma unroll(UNITS > 8 ? 4 : UNITS)
    for (int i = 0; i < UNITS; i++) {
      const uint4 v = load_shared16(own + (slot * UNITS + i) * LW * 512);
      const u32 to = at.xring + stage * XSTAGE + (i * (LW / 2) + pair) * 1024 + lane_at;
      store_shared(to ^ (half << 6), v.x);
      store_shared(to ^ (half << 6 | 16), v.y);
      store_shared(to ^ (half << 6 | 32), v.z);
      store_shared(to ^ (half << 6 | 48), v.w);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the tensor core reads through another proxy
    __syncwarp();
    if (at.lane == 0) bar_arrive(at.xfull + stage * 8);
    request(j + XAHEAD, slot);
    if (++stage == p.DX) stage = 0, parity ^= 1;
    if (++slot == XAHEAD) slot = 0;
  }
}

// A warp's records of one chunk into a stage of its ring; lane i copies those of tile i
DEV void fetch(const Args& p, const Place& at, int tiles, int stage, int chunk) {
  const u32 bar = at.bars + stage * 8;
  if (at.lane == 0) bar_expect(bar, tiles * RUN);
  __syncwarp();
  if (at.lane < tiles) {
    const int row = (at.tile0 + at.lane * WM + at.wm) * 4 + at.w;
    bulk_copy(at.ring + stage * (MT * RUN) + at.lane * RUN, p.records + ((size_t)row * p.blocks + chunk * CHUNK + at.wk * KW) * RECORD, RUN, bar);
  }
}

// The address of x's block for wgmma: K-major, swizzle of 128 bytes, 8 rows 1,024 bytes apart
DEV u64 descriptor(u32 address) { return (u64)1 << 62 | (u64)64 << 32 | (u64)1 << 16 | (address & 0x3ffff) >> 4; }

// Eight A registers from two words: an address is byte << 8 | lane << 2
DEV void decode(u32* a, const u32* words, const u8* table, u32 lane4) {
  #pragma unroll
  for (int i = 0; i < 8; i++) a[i] = *(const u32*)(table + prmt(words[i >> 2], lane4, 0x5504 | (i & 3) << 4));
}

// One warpgroup's work on M tiles: all its chunks, the sums end in tot
template <int M> DEV void multiply(const Args& p, const Place& at, const u8* table, float (&tot)[M][SUMS]) {
  const u32 lane4 = at.lane * 4;
  const int g = at.lane >> 2;
  float low_group[M], high_group[M], offset[M];
  const int first_group = (int)(((long long)at.tile0 * 64 * p.blocks) >> 8);
  auto read_groups = [&](int block) {
    #pragma unroll
    for (int m = 0; m < M; m++) {
      const int flat = ((at.tile0 + m * WM + at.wm) * 64 + at.w * 16 + g) * p.blocks + block;
      low_group[m] = load_shared_float(at.groups + ((flat >> 8) - first_group) * 4);
      high_group[m] = load_shared_float(at.groups + (((flat + 8 * p.blocks) >> 8) - first_group) * 4);
    }
  };
  #pragma unroll
  for (int m = 0; m < M; m++) offset[m] = __ldg(p.offsets + (at.tile0 + m * WM + at.wm) * 4 + at.w);
  read_groups(at.first * CHUNK + at.wk * KW);

  float sums[PRESCALE ? 1 : SUMS], low[2] = {0.f, 0.f}, high[2] = {0.f, 0.f};
  u32 a[2][8];
  #pragma unroll
  for (int i = 0; i < (PRESCALE ? 1 : SUMS); i++) sums[i] = 0.f;
  hold<PRESCALE ? 1 : SUMS>(sums);
  #pragma unroll
  for (int m = 0; m < M; m++) hold<SUMS>(tot[m]);  // zeros are in place before the first product
  auto add = [&](int m, int turn) {  // tot[m] += sums * scale
    #pragma unroll
    for (int i = 0; i < SUMS; i++) tot[m][i] = fmaf(sums[PRESCALE ? 0 : i], i & 2 ? high[turn] : low[turn], tot[m][i]);
  };

  int stage = 0, xstage = 0, behind = 0;
  u32 parity = 0, xparity = 0;
  #pragma unroll 1
  for (int j = at.first; j < at.last; j++) {
    bar_wait(at.bars + stage * 8, parity);
    bar_wait(at.xfull + xstage * 8, xparity);
    #pragma unroll
    for (int s = 0; s < KW * M; s++) {
      const int i = s / M, m = s % M, turn = s & 1;
      const u32 record = at.ring + stage * (MT * RUN) + m * RUN + i * RECORD;
      const u64 b = descriptor(at.xring + xstage * XSTAGE + (at.wk * KW + i) * XBLOCK);
      const uint4 v = load_shared16(record + at.lane * 16);
      const u32 words[4] = {v.x, v.y, v.z, v.w}, codes = load_shared2(record + 512 + g * 2);
      low[turn] = fmaf(*(const float*)(table + prmt(codes, lane4 | 128, 0x5504)), low_group[m], offset[m]);
      high[turn] = fmaf(*(const float*)(table + prmt(codes, lane4 | 128, 0x5514)), high_group[m], offset[m]);
      if (PRESCALE) {
        const u32 scale[2] = {pair(low[turn], low[turn]), pair(high[turn], high[turn])};
        #pragma unroll
        for (int h = 0; h < 2; h++) {
          wgmma_wait<1>();  // whoever read a[h] last is done
          if (s == 0 && h == 1) bar_arrive_if(j > at.first && at.lane == 0, at.xempty + behind * 8);
          decode(a[h], words + 2 * h, table, lane4);
          #pragma unroll
          for (int e = 0; e < 8; e++) a[h][e] = times(a[h][e], scale[e & 1]);
          wgmma_fence();
          #pragma unroll
          for (int k = 0; k < 2; k++) wgmma<ROWS>(tot[m], a[h] + 4 * k, b + 2 * (2 * h + k), 1);
          wgmma_commit();
        }
      } else {
        #pragma unroll
        for (int h = 0; h < 2; h++) {
          if (h == 0) wgmma_wait<1>();
          decode(a[h], words + 2 * h, table, lane4);
          if (h == 0) {
            wgmma_wait<0>();
            hold<PRESCALE ? 1 : SUMS>(sums);
            if (s == 0) bar_arrive_if(j > at.first && at.lane == 0, at.xempty + behind * 8);
            add((m + M - 1) % M, turn ^ 1);
          }
          wgmma_fence();
          #pragma unroll
          for (int k = 0; k < 2; k++) wgmma<ROWS>(sums, a[h] + 4 * k, b + 2 * (2 * h + k), h + k > 0);
          wgmma_commit();
        }
      }
    }
    __syncwarp();
    if (j + p.D < at.last) fetch(p, at, M, stage, j + p.D);
    const int block = j * CHUNK + at.wk * KW, next = block + CHUNK;
    if (next >> p.group_shift != block >> p.group_shift && j + 1 < at.last) read_groups(next);
    behind = xstage;
    if (++stage == p.D) stage = 0, parity ^= 1;
    if (++xstage == p.DX) xstage = 0, xparity ^= 1;
  }
  wgmma_wait<0>();
  if (PRESCALE)
    #pragma unroll
    for (int m = 0; m < M; m++) hold<SUMS>(tot[m]);
  else {
    hold<PRESCALE ? 1 : SUMS>(sums);
    add(M - 1, 1);
  }
}

// Sums of 16 features x 8 rows, four a lane: features g and g + 8, rows 2 q and 2 q + 1.  Neighbours swap, so that a lane has two features of one row
DEV void swap_neighbours(float4 v, int lane, u32& low, u32& high) {
  const bool odd = lane & 4;
  const float a = __shfl_xor_sync(0xffffffffu, odd ? v.x : v.y, 4), b = __shfl_xor_sync(0xffffffffu, odd ? v.z : v.w, 4);
  low = odd ? pair(a, v.y) : pair(v.x, a);
  high = odd ? pair(b, v.w) : pair(v.z, b);
}
DEV void add_bias(const Args& p, float4& v, int feature, int lane) {
  if (!p.bias) return;
  const float low = __uint_as_float((u32)p.bias[feature + (lane >> 2)] << 16), high = __uint_as_float((u32)p.bias[feature + 8 + (lane >> 2)] << 16);
  v.x += low, v.y += low, v.z += high, v.w += high;
}
DEV void store_y(const Args& p, float4 v, int feature, int col, int lane) {
  u32 low, high;
  swap_neighbours(v, lane, low, high);
  const int row = col * 8 + (lane & 3) * 2 + (lane >> 2 & 1);
  if (row >= p.rows) return;
  u16* to = p.y + (size_t)row * p.N + feature + (lane >> 3) * 2;
  *(u32*)to = low;
  *(u32*)(to + 8) = high;
}

DEV void plus(float4& a, float4 b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

// Unit u of the block: column group u % COLS of record row u / COLS
template <int M> DEV void finish(const Args& p, const Place& at, u8* shared, float (&tot)[M ? M : 1][SUMS], int c, int b) {
  const int warp = (at.wk * WM + at.wm) * 4 + at.w, units = p.T * 4 * COLS, used = at.tiles * 4 * COLS;
  const u32 pitch = p.T * 64 + 8;
  float4* parts = (float4*)shared;
  u16* rows = (u16*)(shared + (WK > 1 ? WK * units * 512 : 0));
  float4* mine = (float4*)p.partial + (size_t)(c * p.across + b) * units * 32;
  auto keep = [&](int u, float4 v) {  // a finished sum (C == 1) into the block's rows in shared memory, else into the workspace
    if (p.C > 1) { __stcg(mine + u * 32 + at.lane, v); return; }
    add_bias(p, v, at.tile0 * 64 + u / COLS * 16, at.lane);
    u32 low, high;
    swap_neighbours(v, at.lane, low, high);
    u16* to = rows + (u % COLS * 8 + (at.lane & 3) * 2 + (at.lane >> 2 & 1)) * pitch + u / COLS * 16 + (at.lane >> 3) * 2;
    *(u32*)to = low;
    *(u32*)(to + 8) = high;
  };
  sync_consumers();  // nobody reads the table or the rings any more
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < COLS; n++) {
      const float4 v = make_float4(tot[m][4 * n], tot[m][4 * n + 1], tot[m][4 * n + 2], tot[m][4 * n + 3]);
      const int u = ((m * WM + at.wm) * 4 + at.w) * COLS + n;
      if (WK > 1) parts[(at.wk * units + u) * 32 + at.lane] = v;
      else keep(u, v);
    }
  if (WK > 1) {
    sync_consumers();
    #pragma unroll 1
    for (int u = warp; u < used; u += WARPS) {
      float4 v = parts[u * 32 + at.lane];
      #pragma unroll
      for (int i = 1; i < WK; i++) plus(v, parts[(i * units + u) * 32 + at.lane]);
      keep(u, v);
    }
  }
  if (p.C == 1) {
    sync_consumers();
    const int pieces = at.tiles * 8;
    #pragma unroll 1
    for (int i = warp * 32 + at.lane; i < p.rows * pieces; i += WARPS * 32) {
      const int row = i / pieces, e = i - row * pieces;
      *(uint4*)(p.y + (size_t)row * p.N + at.tile0 * 64 + e * 8) = *(const uint4*)(rows + row * pitch + e * 8);
    }
    return;
  }
  sync_consumers();
  int* counter = p.counters + b;
  if (warp == 0 && at.lane == 0) {
    __threadfence();
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
    int seen;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while ((seen & 0xffff) != p.C);
  }
  sync_consumers();
  const size_t step = (size_t)p.across * units * 32;
  const float4* all = (const float4*)p.partial + (size_t)b * units * 32 + at.lane;
  #pragma unroll 1
  for (int u = warp * p.C + c; u < used; u += WARPS * p.C) {
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    #pragma unroll 1
    for (int i = 0; i < p.C; i += 8) {
      float4 part[8];  // eight loads under way before the first is used
      #pragma unroll
      for (int e = 0; e < 8; e++) part[e] = i + e < p.C ? __ldcg(all + (i + e) * step + u * 32) : make_float4(0.f, 0.f, 0.f, 0.f);
      #pragma unroll
      for (int e = 0; e < 8; e++) plus(v, part[e]);
    }
    add_bias(p, v, at.tile0 * 64 + u / COLS * 16, at.lane);
    store_y(p, v, at.tile0 * 64 + u / COLS * 16, u % COLS, at.lane);
  }
  if (warp == 0 && at.lane == 0) {  // the last to leave sets the counter back
    int left;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 65536;" : "=r"(left) : "l"(counter) : "memory");
    if (left >> 16 == p.C - 1) *counter = 0;
  }
}

// M, the number of tiles of a warpgroup, is known only at run time: MT, or less at the end of the matrix or where T is no multiple of WM
template <int M> DEV void consume(const Args& p, const Place& at, u8* shared, int tiles, int c, int b) {
  if (tiles == M) {
    float tot[M][SUMS];
    #pragma unroll
    for (int m = 0; m < M; m++)
      #pragma unroll
      for (int i = 0; i < SUMS; i++) tot[m][i] = 0.f;
    __syncthreads();
    multiply<M>(p, at, shared, tot);
    finish<M>(p, at, shared, tot, c, b);
  } else if constexpr (M > 1) {
    consume<M - 1>(p, at, shared, tiles, c, b);
  } else {
    float none[1][SUMS];
    __syncthreads();
    finish<0>(p, at, shared, none, c, b);
  }
}

// Both tables and the block's group scales, by the warps that multiply; loads first, as each costs most of a microsecond
DEV void fill_tables(const Args& p, const Place& at, u8* shared, int groups) {
  constexpr int PIECES = (2048 + WARPS * 32 - 1) / (WARPS * 32);
  const int thread = threadIdx.x, first = (int)(((long long)at.tile0 * 64 * p.blocks) >> 8), all = (int)(((long long)p.N * p.blocks + 255) >> 8);
  float codes[PIECES];
  #pragma unroll
  for (int i = 0; i < PIECES; i++) codes[i] = thread + i * WARPS * 32 < 2048 ? __ldg(p.code + ((thread + i * WARPS * 32) >> 3)) : 0.f;
  const float group = thread < groups && first + thread < all ? __ldg(p.group_scales + first + thread) : 0.f;
  #pragma unroll
  for (int i = 0; i < PIECES; i++) {
    const u32 e = thread + i * WARPS * 32, v = value(e >> 3 & 15) | value(e >> 7) << 16;  // low nibble, high nibble
    if (e < 2048) *(uint4*)(shared + (e >> 3) * 256 + (e & 7) * 16) = make_uint4(v, v, v, v);
  }
  #pragma unroll
  for (int i = 0; i < PIECES; i++) {
    const u32 e = thread + i * WARPS * 32, v = __float_as_uint(codes[i]);
    if (e < 2048) *(uint4*)(shared + (e >> 3) * 256 + 128 + (e & 7) * 16) = make_uint4(v, v, v, v);
  }
  if (thread < groups) store_shared(at.groups + thread * 4, __float_as_uint(group));
  #pragma unroll 1
  for (int i = thread + WARPS * 32; i < groups && first + i < all; i += WARPS * 32) store_shared(at.groups + i * 4, __float_as_uint(__ldg(p.group_scales + first + i)));
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) nf4(const Args p) {
  extern __shared__ __align__(1024) u8 shared[];
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0);  // uniform for the compiler too, or it serializes wgmma
  const int c = p.across == 1 ? blockIdx.x : __umulhi(blockIdx.x, p.magic), b = blockIdx.x - c * p.across;
  Place at;
  at.lane = threadIdx.x & 31;
  at.w = warp & 3, at.wm = (warp >> 2) % WM, at.wk = (warp >> 2) / WM;
  at.tile0 = b * p.T, at.tiles = min(p.T, p.N / 64 - at.tile0);
  at.first = c * p.chunks + min(c, p.extra), at.last = at.first + p.chunks + (c < p.extra);
  const int tiles = warp < WARPS ? max(0, (at.tiles - at.wm + WM - 1) / WM) : 0;
  at.base = shared_address(shared);
  at.xring = at.base + TABLE;
  at.raw = at.xring + p.DX * XSTAGE;
  at.ring = at.raw + XAHEAD * XSTAGE + warp * p.D * MT * RUN;
  at.groups = at.raw + XAHEAD * XSTAGE + WARPS * p.D * MT * RUN;
  const int groups = (p.T * 64 * p.blocks + 255) / 256 + 1;
  at.xfull = (at.groups + groups * 4 + 15) & ~15u;
  at.xempty = at.xfull + p.DX * 8;
  at.bars = at.xempty + p.DX * 8 + warp * p.D * 8;
  if (warp < WARPS) {
    if (at.lane < p.D) bar_init(at.bars + at.lane * 8, 1);
  } else if (warp == WARPS && at.lane < p.DX) {
    bar_init(at.xfull + at.lane * 8, LW);
    bar_init(at.xempty + at.lane * 8, min(WM, at.tiles) * WK * 4);
  }
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
  if (tiles) {
    #pragma unroll 1
    for (int d = 0; d < p.D && at.first + d < at.last; d++) fetch(p, at, tiles, d, at.first + d);
  }
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  if (warp < WARPS) {
#ifdef REGS
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGS));
#endif
    fill_tables(p, at, shared, groups);
    consume<MT>(p, at, shared, tiles, c, b);
  } else {
#ifdef REGS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(480 - 4 * REGS));
#endif
    bring_x(p, at, warp - WARPS);
  }
}
