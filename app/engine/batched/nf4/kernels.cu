// NF4 linear layers for few rows on tensor cores: y[rows, N] = x[rows, K] @ W[N, K].T + bias, bf16 in and out, fp32 sums.
// layout.py draws the records; linear.py launches. MODES is for measuring: 0 is the product.
typedef unsigned int u32; typedef unsigned short u16; typedef unsigned char u8; typedef unsigned long long u64;
__constant__ u16 NF4[16] = {CODES};
#define DEV __device__ __forceinline__
DEV u32 smem_u32(const void* p){ return (u32)__cvta_generic_to_shared(p); }
DEV void bar_init(u32 b, u32 n){ asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(n) : "memory"); }
DEV void bar_arrive(u32 b){ asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory"); }
DEV u32 bar_try(u32 b, u32 ph){ u32 ok; asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(ok) : "r"(b), "r"(ph) : "memory"); return ok; }
DEV void bar_wait(u32 b, u32 ph){ if (bar_try(b, ph)) return; for (u32 i = 0; !bar_try(b, ph); i++) if (i > (1u << 22)) __trap(); }
template<int HINT> DEV void bulk(u32 dst, const u8* src, u32 bytes, u32 bar){
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
  if (HINT){ u64 pol; asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(pol));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" :: "r"(dst), "l"(src), "r"(bytes), "r"(bar), "l"(pol) : "memory"); return; }
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(dst), "l"(src), "r"(bytes), "r"(bar) : "memory"); }
DEV uint4 lds128(u32 a){ uint4 v; asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(a)); return v; }
DEV u32 lds16(u32 a){ u32 v; asm volatile("{ .reg .b16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h; }" : "=r"(v) : "r"(a)); return v; }
DEV u32 lds32(u32 a){ u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(a)); return v; }
DEV void sts128(u32 a, float x, float y, float z, float w){ asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" :: "r"(a), "f"(x), "f"(y), "f"(z), "f"(w) : "memory"); }
DEV void add(float4& v, uint4 u){ v.x += __uint_as_float(u.x); v.y += __uint_as_float(u.y); v.z += __uint_as_float(u.z); v.w += __uint_as_float(u.w); }
DEV uint4 ldg128(const void* p){ uint4 v; asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory"); return v; }
DEV void mma(float* c, const u32* a, u32 b0, u32 b1){
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
DEV float wide(u16 h){ return __uint_as_float((u32)h << 16); }
DEV u16 bf16(float f){ u32 u = __float_as_uint(f); return (u16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16); }

// For few rows. MODE 0: all; 1: only the ring (its own read floor); 2: without table look-ups (the bytes themselves as operands); 3: without the sum over blocks; 4: all, with an L2 hint
struct Whole { static constexpr bool v = true; }; struct Part { static constexpr bool v = false; };
template<int W, int KB, int NT, int MODE, int DQ> DEV void body(const u8* wp, const u16* x, u16* y, float* ws, int* cnt, const float* code, const float* s2, const float* offs, const u16* bias, int N, int KBT, int rows, int C, int SL, int F, int D, int R){
  extern __shared__ __align__(1024) u8 sm[];
  constexpr u32 REC = DQ ? 528 : 544, STG = KB * REC, NG = DQ ? (KB % 4 ? 2 : KB / 4) : 1;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, q = lane & 3, P = R;
  const u32 base = smem_u32(sm), ring = base + 65536, part = ring + W * D * STG, acc0 = part + P * W * NT * 512, bars0 = acc0;
  const int tiles = N >> 4, per = gridDim.x / C, c = blockIdx.x / per, b = blockIdx.x - c * per, full = F > 1 ? tiles / per * per : tiles;
  const int t0 = full * b / per, t1 = full * (b + 1) / per, T = t1 - t0, has = F > 1 && b < (tiles - full) * F, ptile = full + b / F, piece = b % F, n = T * SL + has;
  const u32 bars = bars0, pf = bars + W * D * 8, pe = pf + P * 8, accs = (pe + P * 8 + 15) & ~15u;
  const u32 myring = ring + warp * D * STG, mybar = bars + warp * D * 8;
  int pt = t0, ps = 0, pj = 0;                                     // next item to fetch (lane 0 of a computing warp)
  auto fetch = [&](int st){
    u32 dst = myring + st * STG, bytes = STG; size_t rec = (size_t)pt * KBT + ((c * SL + ps) * W + warp) * KB;
    if (has && pj == 0){ bytes = STG / F; dst += piece * bytes; rec = (size_t)ptile * KBT + warp * KB + piece * (KB / F); }
    else if (++pt == t1){ pt = t0; ps++; }
    bulk<MODE == 4>(dst, wp + rec * REC, bytes, mybar + st * 8); pj++;
  };
  if (warp < W && lane == 0){
    for (int d = 0; d < D; d++) bar_init(mybar + d * 8, 1);
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
    while (pj < D && pj < n) fetch(pj);
  }
  if (warp == W && lane == 0) for (int i = 0; i < P; i++){ bar_init(pf + i * 8, W); bar_init(pe + i * 8, 1); }
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  for (int i = tid; i < 2048; i += blockDim.x){                    // the table: row e = 32 copies of its word
    u32 e = i >> 3, v = NF4[e & 15] | ((u32)NF4[e >> 4] << 16);
    *(uint4*)(sm + e * 256 + (i & 7) * 16) = make_uint4(v, v, v, v);
    if (DQ){ v = __float_as_uint(code[e]); *(uint4*)(sm + e * 256 + 128 + (i & 7) * 16) = make_uint4(v, v, v, v); }   // the gaps hold the 256 scale codes
  }
  __syncthreads();
  asm volatile("griddepcontrol.wait;" ::: "memory");               // from here on what the kernel before wrote may be read
  if (warp < W){
    const int K = KBT * 64; const u32 lane4 = lane * 4;
    int st = 0, ph = 0, buf = 0, bph = 1, kb0 = 0;
    u32 xr[KB][NT][8];
    auto item = [&](auto whole, int t){
      const float offset = DQ ? __ldg(offs + t) : 0.f;
      float sa[NG], sb[NG]; const int f0 = (t * 16 + g) * KBT + kb0, f1 = f0 + 8 * KBT;      // number of the lane's first block in rows g and g + 8
      if (DQ){
        #pragma unroll
        for (int i = 0; i < NG; i++){ const int o = KB % 4 ? i * (KB - 1) : 4 * i; sa[i] = __ldg(s2 + ((f0 + o) >> 8)); sb[i] = __ldg(s2 + ((f1 + o) >> 8)); }
      }
      bar_wait(mybar + st * 8, ph);
      float tot[NT][4];
      #pragma unroll
      for (int nt = 0; nt < NT; nt++) for (int i = 0; i < 4; i++) tot[nt][i] = 0.f;
      const u32 rec = myring + st * STG;
      if (MODE != 1){
        #pragma unroll
        for (int kb = 0; kb < KB; kb++){
          if (!whole.v && kb / (KB / F) != piece) continue;
          const uint4 w4 = lds128(rec + kb * REC + lane * 16); const u32 sc = DQ ? lds16(rec + kb * REC + 512 + g * 2) : lds32(rec + kb * REC + 512 + g * 4);
          const u32 ww[4] = {w4.x, w4.y, w4.z, w4.w};
          float acc[NT][4];
          #pragma unroll
          for (int nt = 0; nt < NT; nt++) for (int i = 0; i < 4; i++) acc[nt][i] = 0.f;
          #pragma unroll
          for (int k = 0; k < 4; k++){
            u32 a[4];
            #pragma unroll
            for (int i = 0; i < 4; i++){
              const u32 ad = __byte_perm(ww[k], lane4, 0x5504 | (i << 4));
              a[i] = MODE == 2 ? ad : *(const u32*)(sm + ad);
            }
            #pragma unroll
            for (int nt = 0; nt < NT; nt++) mma(acc[nt], a, xr[kb][nt][2 * k], xr[kb][nt][2 * k + 1]);
          }
          float lo = __uint_as_float(sc << 16), hi = __uint_as_float(sc & 0xffff0000u);
          if (DQ){
            const float ga = KB % 4 == 0 ? sa[kb / 4] : (f0 & 255) + kb > 255 ? sa[NG - 1] : sa[0], gb = KB % 4 == 0 ? sb[kb / 4] : (f1 & 255) + kb > 255 ? sb[NG - 1] : sb[0];
            lo = fmaf(*(const float*)(sm + __byte_perm(sc, lane4 | 128, 0x5504)), ga, offset); hi = fmaf(*(const float*)(sm + __byte_perm(sc, lane4 | 128, 0x5514)), gb, offset);
          }
          #pragma unroll
          for (int nt = 0; nt < NT; nt++){
            tot[nt][0] = fmaf(acc[nt][0], lo, tot[nt][0]); tot[nt][1] = fmaf(acc[nt][1], lo, tot[nt][1]);
            tot[nt][2] = fmaf(acc[nt][2], hi, tot[nt][2]); tot[nt][3] = fmaf(acc[nt][3], hi, tot[nt][3]);
          }
        }
      }
      __syncwarp();
      if (lane == 0 && pj < n) fetch(st);                            // the stage is read: fetch item j + D into it
      if (++st == D){ st = 0; ph ^= 1; }
      bar_wait(pe + buf * 8, bph);                                   // a fresh barrier counts parity 1 as done
      #pragma unroll
      for (int nt = 0; nt < NT; nt++) sts128(part + (((buf * W + warp) * NT + nt) * 32 + lane) * 16, tot[nt][0], tot[nt][1], tot[nt][2], tot[nt][3]);
      __syncwarp();
      if (lane == 0) bar_arrive(pf + buf * 8);
      if (++buf == P){ buf = 0; bph ^= 1; }
    };
    for (int s = 0; s < SL; s++){
      kb0 = ((c * SL + s) * W + warp) * KB;
      #pragma unroll
      for (int nt = 0; nt < NT; nt++){
        const u16* xb = x + (size_t)(nt * 8 + g) * K + kb0 * 64 + q * 8;
        #pragma unroll
        for (int kb = 0; kb < KB; kb++){
          uint4 u = make_uint4(0, 0, 0, 0), v = u;
          if (nt * 8 + g < rows){ u = ldg128(xb + kb * 64); v = ldg128(xb + kb * 64 + 32); }
          u32* o = xr[kb][nt]; o[0] = u.x; o[1] = u.y; o[2] = u.z; o[3] = u.w; o[4] = v.x; o[5] = v.y; o[6] = v.z; o[7] = v.w;
        }
      }
      if (NT == 1 && has) item(Part(), ptile);
      for (int t = t0; t < t1; t++) item(Whole(), t);
    }
  } else {
    const int r = warp - W; int cur = 0; u32 ph = 0;
    for (int j = r; j < n; j += R, ph ^= 1){                         // P == R: reducer r owns buffer r
      const int jj = j - has, s = jj < 0 ? 0 : jj / T, t = jj < 0 ? ptile : t0 + jj - s * T;
      for (; cur < s; cur++) asm volatile("bar.sync 1, %0;" :: "r"(R * 32) : "memory");   // the slice before is summed by all reducers
      bar_wait(pf + r * 8, ph);
      float4 v[NT];
      #pragma unroll
      for (int nt = 0; nt < NT; nt++){
        v[nt] = make_float4(0.f, 0.f, 0.f, 0.f);
        #pragma unroll
        for (int w = 0; w < W; w++) add(v[nt], lds128(part + (((r * W + w) * NT + nt) * 32 + lane) * 16));
      }
      __syncwarp();
      if (lane == 0) bar_arrive(pe + r * 8);
      if (SL > 1){
        const u32 at = accs + ((t - t0) * NT * 32 + lane) * 16;
        #pragma unroll
        for (int nt = 0; nt < NT; nt++){
          if (s) add(v[nt], lds128(at + nt * 512));
          if (s < SL - 1) sts128(at + nt * 512, v[nt].x, v[nt].y, v[nt].z, v[nt].w);
        }
        if (s < SL - 1) continue;
      }
      const int many = jj < 0 ? F : C, mine = jj < 0 ? piece : c;
      if (many > 1 && MODE != 3){
        float4* wsp = (float4*)ws; const size_t step = (size_t)tiles * NT * 32, at = (size_t)t * NT * 32 + lane;
        #pragma unroll
        for (int nt = 0; nt < NT; nt++) if (nt * 8 + 2 * q < rows) __stcg(wsp + mine * step + at + nt * 32, v[nt]);
        __syncwarp();
        int old = 0;
        if (lane == 0) asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(old) : "l"(cnt + t) : "memory");
        old = __shfl_sync(0xffffffffu, old, 0); __syncwarp();
        if (old != many - 1) continue;
        #pragma unroll
        for (int nt = 0; nt < NT; nt++){
          v[nt] = make_float4(0.f, 0.f, 0.f, 0.f);
          if (nt * 8 + 2 * q < rows){
            #pragma unroll 4
            for (int i = 0; i < many; i++){ float4 u = __ldcg(wsp + i * step + at + nt * 32); v[nt].x += u.x; v[nt].y += u.y; v[nt].z += u.z; v[nt].w += u.w; }
          }
        }
        if (lane == 0) cnt[t] = 0;
      }
      #pragma unroll
      for (int nt = 0; nt < NT; nt++){
        const int col = nt * 8 + 2 * q; u16* o = y + (size_t)col * N + t * 16 + g;
        if (bias){ const float b0 = wide(bias[t * 16 + g]), b1 = wide(bias[t * 16 + g + 8]); v[nt].x += b0; v[nt].y += b0; v[nt].z += b1; v[nt].w += b1; }
        if (col < rows){ o[0] = bf16(v[nt].x); o[8] = bf16(v[nt].z); }
        if (col + 1 < rows){ o[N] = bf16(v[nt].y); o[N + 8] = bf16(v[nt].w); }
      }
    }
    for (; cur < SL - 1; cur++) asm volatile("bar.sync 1, %0;" :: "r"(R * 32) : "memory");
  }
}

// 16 rows and more: a warp OWNS its weight rows over a whole slice of k (MT tiles of 16), sums stay in its registers, x comes through shared memory.
// A block is WM x WK warps: WM * MT tiles, WK pieces of every chunk of k (KW blocks each); one pass, one item.  Weights: a ring of D stages for each warp.  x: a ring of DX chunks
// for the block (rows padded to 64 mod 128 bytes: 16-byte reads without conflicts); the chunk read last but one is filled anew by warp j % W.  K / 64 must divide by 16 (group scales change only there).  C slices of K over blocks, added at the end in order.
// MODE 0: all; 1: only the rings; 2: without table look-ups; 3: x not read from shared memory.
template<int WM, int WK, int MT, int NS, int NT, int KW, int MODE, int DQ> DEV void own(const u8* wp, const u16* x, u16* y, float* ws, int* cnt, const float* code, const float* s2, const float* offs, const u16* bias, int N, int KBT, int rows, int C, int D, int DX){
  extern __shared__ __align__(1024) u8 sm[];
  constexpr int W = WM * WK, TH = W * 32, TPB = WM * MT, KC = WK * KW;
  constexpr u32 REC = DQ ? 528 : 544, RUN = KW * REC, STG = MT * RUN, PITCH = KC * 128 + 64, XST = NT * 8 * PITCH;
  constexpr bool AHEAD = MT * NT < 20; constexpr int NH = NT / NS;
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, q = lane & 3, wm = warp % WM, wk = warp / WM;
  const int tiles = N >> 4, per = (tiles + TPB - 1) / TPB, c = blockIdx.x / per, b = blockIdx.x - c * per, tile0 = b * TPB, KS = KBT / C, n = KS / KC, k0 = c * KS + wk * KW, K = KBT * 64;
  const u32 base = smem_u32(sm), xring = base + 65536, ring = xring + DX * XST, bars = ring + W * D * STG, xf = bars + W * D * 8, xe = xf + DX * 8;
  const u32 myring = ring + warp * D * STG, mybar = bars + warp * D * 8;
  const int mine = min(tile0 + wm * MT + lane, tiles - 1);         // lane i copies the warp's tile i
  const u8* src = wp + ((size_t)mine * KBT + k0) * REC;
  auto expect = [&](u32 bar, u32 bytes){ asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory"); };
  auto copy = [&](u32 dst, const void* from, u32 bytes, u32 bar){ asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(dst), "l"(from), "r"(bytes), "r"(bar) : "memory"); };
  auto fetch = [&](int st, int j){
    if (lane == 0) expect(mybar + st * 8, STG);
    __syncwarp();
    if (lane < MT) copy(myring + st * STG + lane * RUN, src + (size_t)j * KC * REC, RUN, mybar + st * 8);
  };
  auto fetchx = [&](int sx, int j){
    if (lane == 0) expect(xf + sx * 8, rows * KC * 128);
    __syncwarp();
    for (int r = lane; r < rows; r += 32) copy(xring + sx * XST + r * PITCH, x + (size_t)r * K + (c * KS + j * KC) * 64, KC * 128, xf + sx * 8);
  };
  if (lane == 0){
    for (int d = 0; d < D; d++) bar_init(mybar + d * 8, 1);
    if (warp == 0) for (int d = 0; d < DX; d++){ bar_init(xf + d * 8, 1); bar_init(xe + d * 8, W); }
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncwarp();
  for (int j = 0; j < D && j < n; j++) fetch(j, j);
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  constexpr int PIECES = (2048 + TH - 1) / TH;
  float cv[DQ ? PIECES : 1];
  if (DQ){
    #pragma unroll
    for (int i = 0; i < PIECES; i++) if (tid + i * TH < 2048) cv[i] = __ldg(code + ((tid + i * TH) >> 3));
  }
  for (int i = tid; i < 2048; i += TH){ u32 e = i >> 3, v = NF4[e & 15] | ((u32)NF4[e >> 4] << 16); *(uint4*)(sm + e * 256 + (i & 7) * 16) = make_uint4(v, v, v, v); }
  float off[MT];
  #pragma unroll
  for (int m = 0; m < MT; m++) off[m] = DQ ? __ldg(offs + min(tile0 + wm * MT + m, tiles - 1)) : 0.f;
  float ca[MT], cb[MT], na[MT], nb[MT];                            // group scales of rows g and g + 8, now and next; they change at multiples of 16 blocks only
  auto groups = [&](float* a, float* o, int k){
    #pragma unroll
    for (int m = 0; m < MT; m++){ const int f = (min(tile0 + wm * MT + m, tiles - 1) * 16 + g) * KBT + k; a[m] = __ldg(s2 + (f >> 8)); o[m] = __ldg(s2 + ((f + 8 * KBT) >> 8)); }
  };
  if (DQ){
    groups(ca, cb, k0);
    #pragma unroll
    for (int i = 0; i < PIECES; i++){ const u32 at = tid + i * TH, v = __float_as_uint(cv[i]); if (at < 2048) *(uint4*)(sm + (at >> 3) * 256 + 128 + (at & 7) * 16) = make_uint4(v, v, v, v); }
  }
  __syncthreads();
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (warp == 0){ asm volatile("fence.proxy.async;" ::: "memory"); for (int j = 0; j < DX && j < n; j++) fetchx(j, j); }
  const u32 lane4 = lane * 4;
  float tot[MT][NT][4];
  #pragma unroll
  for (int m = 0; m < MT; m++) for (int t = 0; t < NT; t++) for (int i = 0; i < 4; i++) tot[m][t][i] = 0.f;
  int st = 0, sx = 0, turn = 0; u32 ph = 0, px = 0, pb = 0;        // px: parity of x's chunk, pb: parity of the chunk before
  for (int j = 0; j < n; j++){
    const int ka = k0 + j * KC; const bool change = DQ && ((ka + KC) >> 4) != (ka >> 4) && j + 1 < n;
    if (AHEAD && change) groups(na, nb, ka + KC);
    bar_wait(xf + sx * 8, px); bar_wait(mybar + st * 8, ph);
    if (MODE != 1)
    #pragma unroll (NT * MT >= 12 ? 1 : KW)
    for (int i = 0; i < KW; i++)
      #pragma unroll
      for (int h = 0; h < NT; h += NH){                             // NS > 1: decoded anew for every NH n8 tiles, for want of registers
        u32 xr[NH][8]; const u32 xs = xring + sx * XST + g * PITCH + (wk * KW + i) * 128 + q * 16;
        #pragma unroll
        for (int t = 0; t < NH; t++){
          uint4 u = make_uint4(xs + h + t, xs ^ t, xs - h, xs + i), v = u;
          if (MODE != 3){ u = lds128(xs + (h + t) * 8 * PITCH); v = lds128(xs + (h + t) * 8 * PITCH + 64); }
          xr[t][0] = u.x; xr[t][1] = u.y; xr[t][2] = u.z; xr[t][3] = u.w; xr[t][4] = v.x; xr[t][5] = v.y; xr[t][6] = v.z; xr[t][7] = v.w;
        }
        #pragma unroll
        for (int m = 0; m < MT; m++){
          const u32 rec = myring + st * STG + m * RUN + i * REC;
          const uint4 w4 = lds128(rec + lane * 16); const u32 sc = DQ ? lds16(rec + 512 + g * 2) : lds32(rec + 512 + g * 4);
          const u32 ww[4] = {w4.x, w4.y, w4.z, w4.w};
          float acc[NH][4];
          #pragma unroll
          for (int t = 0; t < NH; t++) for (int e = 0; e < 4; e++) acc[t][e] = 0.f;
          #pragma unroll
          for (int k = 0; k < 4; k++){
            u32 a[4];
            #pragma unroll
            for (int e = 0; e < 4; e++){ const u32 ad = __byte_perm(ww[k], lane4, 0x5504 | (e << 4)); a[e] = MODE == 2 ? ad : *(const u32*)(sm + ad); }
            #pragma unroll
            for (int t = 0; t < NH; t++) mma(acc[t], a, xr[t][2 * k], xr[t][2 * k + 1]);
          }
          float lo = __uint_as_float(sc << 16), hi = __uint_as_float(sc & 0xffff0000u);
          if (DQ){ lo = fmaf(*(const float*)(sm + __byte_perm(sc, lane4 | 128, 0x5504)), ca[m], off[m]); hi = fmaf(*(const float*)(sm + __byte_perm(sc, lane4 | 128, 0x5514)), cb[m], off[m]); }
          #pragma unroll
          for (int t = 0; t < NH; t++){
            float* o = tot[m][h + t];
            o[0] = fmaf(acc[t][0], lo, o[0]); o[1] = fmaf(acc[t][1], lo, o[1]); o[2] = fmaf(acc[t][2], hi, o[2]); o[3] = fmaf(acc[t][3], hi, o[3]);
          }
        }
      }
    __syncwarp();
    if (lane == 0) bar_arrive(xe + sx * 8);
    if (j + D < n) fetch(st, j + D);
    if (warp == turn && j > 0 && j - 1 + DX < n){ const int back = sx == 0 ? DX - 1 : sx - 1; bar_wait(xe + back * 8, pb); fetchx(back, j - 1 + DX); }
    if (change){
      if (AHEAD){
        #pragma unroll
        for (int m = 0; m < MT; m++){ ca[m] = na[m]; cb[m] = nb[m]; }
      } else groups(ca, cb, ka + KC);
    }
    pb = px; if (++st == D){ st = 0; ph ^= 1; } if (++sx == DX){ sx = 0; px ^= 1; } if (++turn == W) turn = 0;
  }
  __syncthreads();                                                  // table and rings are free: sums over WK, then over C, then wide stores
  #pragma unroll
  for (int m = 0; m < MT; m++) for (int t = 0; t < NT; t++) sts128(base + (((wk * TPB + wm * MT + m) * NT + t) * 32 + lane) * 16, tot[m][t][0], tot[m][t][1], tot[m][t][2], tot[m][t][3]);
  __syncthreads();
  constexpr int UNITS = TPB * NT * 32; constexpr u32 YP = TPB * 16 + 8, YB = WK * UNITS * 16;
  u16* yb = (u16*)(sm + YB); float4* wsp = (float4*)ws;
  auto keep = [&](int u, float4 v){
    const int tile = u / (NT * 32), col = (u / 32 % NT) * 8 + 2 * (u & 3);
    if (bias){ const int n0 = min(tile0 + tile, tiles - 1) * 16 + ((u & 31) >> 2); const float b0 = wide(bias[n0]), b1 = wide(bias[n0 + 8]); v.x += b0; v.y += b0; v.z += b1; v.w += b1; }
    u16* o = yb + col * YP + tile * 16 + ((u & 31) >> 2);
    o[0] = bf16(v.x); o[YP] = bf16(v.y); o[8] = bf16(v.z); o[YP + 8] = bf16(v.w);
  };
  for (int u = tid; u < UNITS; u += TH){
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    #pragma unroll
    for (int w = 0; w < WK; w++) add(v, lds128(base + (w * UNITS + u) * 16));
    if (C == 1) keep(u, v); else __stcg(wsp + (size_t)blockIdx.x * UNITS + u, v);
  }
  if (C > 1){
    __threadfence(); __syncthreads();
    int* flag = (int*)sm;
    if (tid == 0){ int old; asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(old) : "l"(cnt + b) : "memory"); *flag = old; if (old == C - 1) cnt[b] = 0; }
    __syncthreads();
    if (*flag != C - 1) return;
    __threadfence();
    for (int u = tid; u < UNITS; u += TH){
      float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
      #pragma unroll 4
      for (int i = 0; i < C; i++){ float4 o = __ldcg(wsp + (size_t)(i * per + b) * UNITS + u); v.x += o.x; v.y += o.y; v.z += o.z; v.w += o.w; }
      keep(u, v);
    }
  }
  __syncthreads();
  for (int p = tid; p < rows * TPB * 2; p += TH){
    const int r = p / (TPB * 2), e = p - r * (TPB * 2);
    if (tile0 + (e >> 1) < tiles) *(uint4*)(y + (size_t)r * N + tile0 * 16 + e * 8) = *(const uint4*)(yb + r * YP + e * 8);
  }
}
#if defined(UNPACK)
__constant__ float NF4F[16] = {FLOATS};
// Records back to rows of bf16, for pieces of prompts: what bitsandbytes' own dequantization gives, bit for bit
extern "C" __global__ void __launch_bounds__(256) nf4(const u8* wp, u16* out, const float* code, const float* s2, const float* offs, int records, int KBT){
  __shared__ float values[16 * 32], codes[256];                     // value v for lane l at 32 v + l: no two lanes want one bank
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  for (int i = threadIdx.x; i < 512; i += 256) values[i] = NF4F[i >> 5];
  codes[threadIdx.x] = __ldg(code + threadIdx.x);
  __syncthreads();
  for (int id = blockIdx.x * 8 + (threadIdx.x >> 5); id < records; id += gridDim.x * 8){
    const int t = id / KBT, kb = id - t * KBT, f0 = (t * 16 + g) * KBT + kb, f1 = f0 + 8 * KBT;
    const u8* rec = wp + (size_t)id * 528;
    const uint4 w = __ldg((const uint4*)(rec + lane * 16)); const u32 sc = __ldg((const u16*)(rec + 512 + g * 2));
    const float off = __ldg(offs + t), scale[2] = {__fadd_rn(__fmul_rn(codes[sc & 255], __ldg(s2 + (f0 >> 8))), off), __fadd_rn(__fmul_rn(codes[sc >> 8], __ldg(s2 + (f1 >> 8))), off)};
    const u32 ww[4] = {w.x, w.y, w.z, w.w};
    #pragma unroll
    for (int r = 0; r < 2; r++)
      #pragma unroll
      for (int h = 0; h < 2; h++){
        u32 o[4];
        #pragma unroll
        for (int i = 0; i < 4; i++){
          const u32 b = ww[2 * h + (i >> 1)] >> (8 * (r + 2 * (i & 1)));
          const float lo = values[(b & 15) << 5 | lane] * scale[r], hi = values[(b >> 4 & 15) << 5 | lane] * scale[r];
          asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(o[i]) : "f"(hi), "f"(lo));
        }
        __stcs((uint4*)(out + (size_t)(t * 16 + g + 8 * r) * KBT * 64 + kb * 64 + h * 32 + q * 8), make_uint4(o[0], o[1], o[2], o[3]));
      }
  }
}
#elif defined(OWN)
extern "C" __global__ void __launch_bounds__(OWN_WM * OWN_WK * 32, 1) nf4(const u8* wp, const u16* x, u16* y, float* ws, int* cnt, const float* code, const float* s2, const float* offs, const u16* bias, int N, int KBT, int rows, int C, int D, int DX){
  own<OWN_WM, OWN_WK, OWN_MT, OWN_NS, TILES, OWN_KW, MODES, DQS>(wp, x, y, ws, cnt, code, s2, offs, bias, N, KBT, rows, C, D, DX); }
#else
extern "C" __global__ void __launch_bounds__((WARPS / 4 + 1) * 128, 1) nf4(const u8* wp, const u16* x, u16* y, float* ws, int* cnt, const float* code, const float* s2, const float* offs, const u16* bias, int N, int KBT, int rows, int C, int SL, int F, int D, int R){
  body<WARPS, RECS, TILES, MODES, DQS>(wp, x, y, ws, cnt, code, s2, offs, bias, N, KBT, rows, C, SL, F, D, R); }
#endif
