//! Matrix products: right against f64 for every shape, stride, type and epilogue, and the same bits on any number of
//! threads.

use half::bf16;
use tec_zoo::kernels::gemm::{GemmError, Mat, MatMut, Packed, Product};

/// Values in ±1 from a counter.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::from_f32(v)).collect()
}

fn widen(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

/// A (rows, cols) operand as it lies in memory: perhaps transposed, perhaps with a gap after each line.
#[derive(Clone, Copy)]
struct Lies {
    transposed: bool,
    gap: usize,
}

impl Lies {
    const EVERY: [Self; 4] = [
        Self { transposed: false, gap: 0 },
        Self { transposed: true, gap: 0 },
        Self { transposed: false, gap: 5 },
        Self { transposed: true, gap: 3 },
    ];

    fn len(self, rows: usize, cols: usize) -> usize {
        let (lines, length) = if self.transposed { (cols, rows) } else { (rows, cols) };
        // The last line has no gap: a product that read one would be out of bounds.
        (lines * (length + self.gap)).saturating_sub(self.gap)
    }

    fn at(self, row: usize, col: usize, rows: usize, cols: usize) -> usize {
        if self.transposed { col * (rows + self.gap) + row } else { row * (cols + self.gap) + col }
    }

    fn mat<'a>(self, values: impl Into<tec_zoo::kernels::gemm::Values<'a>>, rows: usize, cols: usize) -> Mat<'a> {
        match self.transposed {
            true => Mat::strided(values, cols, rows, rows + self.gap).t(),
            false => Mat::strided(values, rows, cols, cols + self.gap),
        }
    }
}

/// A·B in f64, and Σ|a·b| by which an error is to be measured.
fn reference((m, n, k): (usize, usize, usize), a: (&[f32], Lies), b: (&[f32], Lies)) -> Vec<(f64, f64)> {
    let mut out = vec![(0.0, 0.0); m * n];
    for i in 0..m {
        for j in 0..n {
            let (sum, size) = &mut out[i * n + j];
            for l in 0..k {
                let product = f64::from(a.0[a.1.at(i, l, m, k)]) * f64::from(b.0[b.1.at(l, j, k, n)]);
                *sum += product;
                *size += product.abs();
            }
        }
    }
    out
}

/// f32 sums of k products, as if in chains of at most 256 and one of k/256: the bound is the chains' lengths times half a
/// unit, and errors of random signs stay far below it, of chains twice as long too.
fn bound(k: usize, size: f64) -> f64 {
    let chain = (k.min(256) + k.div_ceil(256)) as f64;
    (chain.sqrt() * 4.0 + 4.0) * f64::from(f32::EPSILON) / 2.0 * size + 1e-30
}

const SHAPES: [(usize, usize, usize); 24] = [
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (1, 33, 17),
    (14, 32, 256),
    (15, 33, 257),
    (13, 31, 255),
    (2, 16, 16),
    (29, 64, 15),
    (5, 7, 600),
    (97, 130, 65),
    (64, 48, 512),
    (40, 100, 513),
    (14, 32, 384),
    (15, 33, 385),
    (30, 16, 800),
    (1040, 40, 400),
    (3, 400, 31),
    (300, 5, 47),
    (200, 197, 64),
    (197, 64, 197),
    (128, 800, 300),
    (31, 1, 700),
];

#[test]
fn products_agree_with_f64_for_every_shape_and_layout() {
    for (m, n, k) in SHAPES {
        for (one, a_lies) in Lies::EVERY.into_iter().enumerate() {
            for (two, b_lies) in Lies::EVERY.into_iter().enumerate() {
                let a = values(1 + one as u64, a_lies.len(m, k));
                let b = values(9 + two as u64, b_lies.len(k, n));
                let mut c = vec![f32::NAN; m * n];
                let product = Product::new(a_lies.mat(&a, m, k), b_lies.mat(&b, k, n), MatMut::new(&mut c, m, n));
                product.run().unwrap();
                for (at, (&c, (exact, size))) in
                    c.iter().zip(reference((m, n, k), (&a, a_lies), (&b, b_lies))).enumerate()
                {
                    let error = (f64::from(c) - exact).abs();
                    assert!(error <= bound(k, size), "{m}×{n}×{k}, layouts {one} {two}, {at}: {c}, {error:e} off");
                }
            }
        }
    }
}

#[test]
fn bf16_operands_give_the_f32_product_of_their_values() {
    for (m, n, k) in SHAPES {
        for lies in Lies::EVERY {
            let a = narrow(&values(3, lies.len(m, k)));
            let b = narrow(&values(4, lies.len(k, n)));
            let mut c = vec![f32::NAN; m * n];
            Product::new(lies.mat(&a, m, k), lies.mat(&b, k, n), MatMut::new(&mut c, m, n)).run().unwrap();
            let (a, b) = (widen(&a), widen(&b));
            let mut wide = vec![f32::NAN; m * n];
            Product::new(lies.mat(&a, m, k), lies.mat(&b, k, n), MatMut::new(&mut wide, m, n)).run().unwrap();
            assert_eq!(c, wide, "{m}×{n}×{k}");
            // Written as bf16, it is that product rounded once.
            let mut half = vec![bf16::NAN; m * n];
            Product::new(lies.mat(&a, m, k), lies.mat(&b, k, n), MatMut::new(&mut half, m, n)).run().unwrap();
            assert_eq!(half, narrow(&wide), "{m}×{n}×{k}");
        }
    }
}

#[test]
fn bf16_is_written_to_nearest_even_and_keeps_what_is_not_finite() {
    // 1 + 2⁻⁸ is half way between 1 and its successor, 1 + 3·2⁻⁸ half way to an even one above.
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NAN, f32::INFINITY, -f32::MAX, -0.0, 1e-40];
    let mut y = [bf16::ZERO; 7];
    Product::new(Mat::new(&[1f32][..], 1, 1), Mat::new(&x[..], 1, 7), MatMut::new(&mut y[..], 1, 7)).run().unwrap();
    assert_eq!(y.map(bf16::to_bits)[..2], [0x3f80, 0x3f82]);
    assert!(y[2].is_nan());
    let rounded: Vec<bf16> = x[3..].iter().map(|&x| bf16::from_f32(x + 0.0)).collect();
    assert_eq!(y[3..], rounded);
}

#[test]
fn a_sum_does_not_depend_on_the_number_of_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for (m, n, k) in [(400, 384, 1536), (1536, 384, 400), (197, 1152, 384), (33, 2048, 300), (1040, 100, 700)] {
        for (a_lies, b_lies) in Lies::EVERY.into_iter().flat_map(|a| Lies::EVERY.map(|b| (a, b))) {
            let (a, b) = (values(5, a_lies.len(m, k)), values(6, b_lies.len(k, n)));
            let run = |threads| {
                let mut c = vec![0f32; m * n];
                let product = Product::new(a_lies.mat(&a, m, k), b_lies.mat(&b, k, n), MatMut::new(&mut c, m, n));
                pool(threads).install(|| product.run()).unwrap();
                c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let one = run(1);
            for threads in [2, 3, 7] {
                assert!(one == run(threads), "{threads} threads, {m}×{n}×{k}");
            }
        }
    }
}

#[test]
fn an_element_does_not_depend_on_its_neighbours() {
    // A row alone, and the same row among others: batch invariance.
    let (m, n, k) = (197, 96, 700);
    let (a, b) = (values(7, m * k), values(8, k * n));
    let mut all = vec![0f32; m * n];
    Product::new(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut all, m, n)).run().unwrap();
    for row in [0, 100, 196] {
        let mut one = vec![0f32; n];
        Product::new(Mat::new(&a[row * k..][..k], 1, k), Mat::new(&b, k, n), MatMut::new(&mut one, 1, n))
            .run()
            .unwrap();
        assert_eq!(one, all[row * n..][..n]);
    }
}

#[test]
fn a_packed_operand_gives_the_same_bits() {
    for (m, n, k) in SHAPES {
        for lies in Lies::EVERY {
            let (a, b) = (values(10, m * k), values(11, lies.len(k, n)));
            let (mut plain, mut packed) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
            Product::new(Mat::new(&a, m, k), lies.mat(&b, k, n), MatMut::new(&mut plain, m, n)).run().unwrap();
            let factor = Packed::new(lies.mat(&b, k, n)).unwrap();
            assert_eq!(factor.shape(), (k, n));
            Product::new(Mat::new(&a, m, k), &factor, MatMut::new(&mut packed, m, n)).run().unwrap();
            assert_eq!(plain, packed, "{m}×{n}×{k}");
        }
    }
}

/// x·Φ(x) and its derivative, in f64.
fn exact_gelu(x: f64) -> (f64, f64) {
    let cdf = 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
    (x * cdf, cdf + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt())
}

fn multiply<'a>((m, n, k): (usize, usize, usize), a: &'a [f32], b: &'a [f32], c: MatMut<'a>) -> Product<'a> {
    Product::new(Mat::new(a, m, k), Mat::new(b, k, n), c)
}

#[test]
fn epilogues_are_what_they_say() {
    for (m, n, k) in [(1, 1, 1), (15, 37, 20), (33, 100, 300), (70, 64, 520), (3, 5, 0)] {
        let (a, b) = (values(12, m * k), values(13, k * n));
        let (bias, residual, before) = (values(14, n), values(15, m * n), values(16, m * n));
        let plain = Lies::EVERY[0];
        let sums = reference((m, n, k), (&a, plain), (&b, plain));
        let shape = (m, n, k);
        let close = |name: &str, got: &[f32], expected: &dyn Fn(usize, f64) -> f64| {
            for (at, (&got, (sum, size))) in got.iter().zip(&sums).enumerate() {
                let error = (f64::from(got) - expected(at, *sum)).abs();
                // The sum's own error, at most 2.5-fold through an epilogue, and roundings of values of size 4.
                assert!(error <= 2.5 * bound(k, *size) + 2e-6, "{name} {m}×{n}×{k}, {at}: {got}, {error:e} off");
            }
        };
        let bias_of = |at: usize| f64::from(bias[at % n]);

        let mut c = before.clone();
        multiply(shape, &a, &b, MatMut::new(&mut c, m, n)).alpha(0.5).accumulate().bias(&bias).run().unwrap();
        close("α, bias, accumulate", &c, &|at, sum| 0.5 * sum + bias_of(at) + f64::from(before[at]));

        multiply(shape, &a, &b, MatMut::new(&mut c, m, n))
            .bias(&bias)
            .residual(Mat::new(&residual, m, n))
            .run()
            .unwrap();
        close("bias, residual", &c, &|at, sum| sum + bias_of(at) + f64::from(residual[at]));

        multiply(shape, &a, &b, MatMut::new(&mut c, m, n)).bias(&bias).gelu().run().unwrap();
        close("gelu", &c, &|at, sum| exact_gelu(sum + bias_of(at)).0);

        let mut kept = vec![0f32; m * n];
        multiply(shape, &a, &b, MatMut::new(&mut c, m, n))
            .bias(&bias)
            .gelu_keeping(MatMut::new(&mut kept, m, n))
            .run()
            .unwrap();
        close("gelu", &c, &|at, sum| exact_gelu(sum + bias_of(at)).0);
        close("kept", &kept, &|at, sum| sum + bias_of(at));

        multiply(shape, &a, &b, MatMut::new(&mut c, m, n)).gelu_gradient(Mat::new(&before, m, n)).run().unwrap();
        close("gelu'", &c, &|at, sum| sum * exact_gelu(f64::from(before[at])).1);

        let (mut half, mut half_kept) = (vec![bf16::ZERO; m * n], vec![bf16::ZERO; m * n]);
        let keep = MatMut::new(&mut half_kept, m, n);
        multiply(shape, &a, &b, MatMut::new(&mut half, m, n)).bias(&bias).gelu_keeping(keep).run().unwrap();
        assert_eq!(half_kept, narrow(&kept));
        for (y, x) in half.iter().zip(&half_kept) {
            // The activation of what was kept, rounded: half a unit of eight bits.
            let exact = exact_gelu(x.to_f64()).0;
            assert!((y.to_f64() - exact).abs() <= exact.abs() / 256.0 + 1e-7, "gelu({x}) is {y}");
        }
    }
}

#[test]
fn rows_with_gaps_are_written_and_the_gaps_are_not() {
    let (m, n, k, stride) = (20, 35, 9, 40);
    let (a, b) = (values(17, m * k), values(18, k * n));
    let mut expected = vec![0f32; m * n];
    Product::new(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::new(&mut expected, m, n)).run().unwrap();
    let mut c = vec![7f32; m * stride];
    Product::new(Mat::new(&a, m, k), Mat::new(&b, k, n), MatMut::strided(&mut c, m, n, stride)).run().unwrap();
    for (row, expected) in c.chunks(stride).zip(expected.chunks(n)) {
        assert_eq!(&row[..n], expected);
        assert!(row[n..].iter().all(|&v| v == 7.0));
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_before_anything_is_written() {
    let x = values(19, 12);
    let mut c = [5f32; 9];
    let shape = |what| move |error: &GemmError| matches!(error, GemmError::Shape { what: w, .. } if *w == what);
    let bounds = |what| move |error: &GemmError| matches!(error, GemmError::Bounds { what: w, .. } if *w == what);
    let mut refused = |why: &dyn Fn(&GemmError) -> bool, product: &dyn Fn(MatMut<'_>) -> Result<(), GemmError>| {
        let error = product(MatMut::new(&mut c[..], 3, 3)).unwrap_err();
        assert!(why(&error), "{error}");
    };
    let (a, b) = (Mat::new(&x, 3, 4), Mat::new(&x, 4, 3));
    refused(&shape("B"), &|c| Product::new(a, Mat::new(&x, 3, 4), c).run());
    refused(&shape("C"), &|c| Product::new(Mat::new(&x[..8], 2, 4), b, c).run());
    refused(&bounds("A"), &|c| Product::new(Mat::new(&x[..11], 3, 4), b, c).run());
    refused(&bounds("A"), &|c| Product::new(Mat::strided(&x, 3, 4, usize::MAX / 2 + 1), b, c).run());
    refused(&bounds("B"), &|c| Product::new(a, Mat::strided(&x, 4, 3, 4), c).run());
    refused(&shape("the bias"), &|c| Product::new(a, b, c).bias(&x[..2]).run());
    refused(&shape("the residual"), &|c| Product::new(a, b, c).residual(Mat::new(&x, 3, 4)).run());
    refused(&bounds("the residual"), &|c| Product::new(a, b, c).residual(Mat::new(&x[..9], 3, 3).t()).run());
    refused(&bounds("the sum kept"), &|c| Product::new(a, b, c).gelu_gradient(Mat::new(&x[..8], 3, 3)).run());
    refused(&bounds("the sum kept"), &|c| {
        Product::new(a, b, c).gelu_keeping(MatMut::new(&mut [0f32; 8][..], 3, 3)).run()
    });
    assert_eq!(c, [5.0; 9]);
    // Rows that overlap would be written by two threads.
    let overlapping = Product::new(a, b, MatMut::strided(&mut c[..], 3, 3, 2)).run();
    assert!(matches!(overlapping, Err(GemmError::Bounds { what: "C", .. })));
    assert!(matches!(Packed::new(Mat::new(&x, 4, 4)), Err(GemmError::Bounds { what: "B", .. })));
}
