// cuRAND, which candle makes a generator of and nothing here asks for numbers.
#define API extern "C" int
API curandCreateGenerator(void **g, int) { *g = (void *)1; return 0; }
API curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
API curandSetStream(void *, void *) { return 0; }
API curandDestroyGenerator(void *) { return 0; }
