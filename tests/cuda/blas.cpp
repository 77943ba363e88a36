// The part of cuBLAS that this program uses: products as loops, column by column, sums in f32.
#include <cstdio>
#include <cstring>
#define API extern "C" int
static float load(const void *p, int type, long i) {
  if (type == 0) return ((const float *)p)[i];
  unsigned bits = (unsigned)((const unsigned short *)p)[i] << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static void store(void *p, int type, long i, float x) {
  if (type == 0) { ((float *)p)[i] = x; return; }
  unsigned bits;
  memcpy(&bits, &x, 4);
  ((unsigned short *)p)[i] = x != x ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static int product(int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
                   const void *b, int type_b, int ldb, const float *beta, void *c, int type_c, int ldc) {
  bool known = (type_a == 0 || type_a == 14) && type_b == type_a && (type_c == type_a || (type_a == 14 && type_c == 0));
  if (!known || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) {
    fprintf(stderr, "emulated cuBLAS: types %d %d %d, strides %d %d %d for %d %d %d\n", type_a, type_b, type_c, lda, ldb, ldc, m, n, k);
    return 7;
  }
  for (long j = 0; j < n; j++)
    for (long i = 0; i < m; i++) {
      float sum = 0;
      for (long l = 0; l < k; l++)
        sum += load(a, type_a, ta ? i * lda + l : l * lda + i) * load(b, type_b, tb ? l * ldb + j : j * ldb + l);
      float old = *beta == 0 ? 0 : *beta * load(c, type_c, j * ldc + i);
      store(c, type_c, j * ldc + i, *alpha * sum + old);
    }
  return 0;
}
API cublasCreate_v2(void **h) { *h = (void *)1; return 0; }
API cublasDestroy_v2(void *) { return 0; }
API cublasSetStream_v2(void *, void *) { return 0; }
API cublasSetMathMode(void *, int) { return 0; }
API cublasGemmEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int, int) {
  return product(ta, tb, m, n, k, (const float *)alpha, a, type_a, lda, b, type_b, ldb, (const float *)beta, c, type_c, ldc);
}
API cublasGemmBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *const *a, int type_a,
                        int lda, const void *const *b, int type_b, int ldb, const void *beta, void *const *c, int type_c,
                        int ldc, int count, int, int) {
  for (int i = 0; i < count; i++)
    if (int bad = product(ta, tb, m, n, k, (const float *)alpha, a[i], type_a, lda, b[i], type_b, ldb, (const float *)beta, c[i], type_c, ldc)) return bad;
  return 0;
}
API cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int type_a,
                               int lda, long long sa, const void *b, int type_b, int ldb, long long sb, const void *beta,
                               void *c, int type_c, int ldc, long long sc, int count, int, int) {
  auto at = [](const void *p, int type, long long n) { return (char *)p + n * (type == 0 ? 4 : 2); };
  for (long long i = 0; i < count; i++)
    if (int bad = product(ta, tb, m, n, k, (const float *)alpha, at(a, type_a, i * sa), type_a, lda, at(b, type_b, i * sb), type_b, ldb, (const float *)beta, at(c, type_c, i * sc), type_c, ldc)) return bad;
  return 0;
}
