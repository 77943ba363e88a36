//! Matrix products at the shapes of a TEC step, beside the `gemm` crate's: best time of each, in turn, on two threads.
//!
//! `cargo bench --bench gemm [-- ROUNDS]`

use std::time::Instant;

use half::bf16;
use tec_zoo::kernels::gemm::{Mat, MatMut, Product, Values};

/// (rows, inputs, outputs) of the Linears of a ViT-S step of batch 8: base, student, decoder, adapter.
const LINEARS: [(usize, usize, usize); 8] = [
    (1576, 384, 1152),
    (1576, 384, 1536),
    (1576, 1536, 384),
    (1576, 384, 384),
    (400, 384, 1536),
    (400, 1536, 384),
    (1576, 512, 2048),
    (400, 1152, 384),
];

/// A product as numbers: `c (m, n) = a·b` over k, each operand perhaps transposed in memory.
struct Case {
    label: &'static str,
    shape: (usize, usize, usize),
    a_transposed: bool,
    b_transposed: bool,
}

fn operand<'a>(values: impl Into<Values<'a>>, rows: usize, cols: usize, transposed: bool) -> Mat<'a> {
    if transposed { Mat::new(values, cols, rows).t() } else { Mat::new(values, rows, cols) }
}

fn theirs(case: &Case, a: &[f32], b: &[f32], c: &mut [f32], threads: usize) {
    let (m, n, k) = case.shape;
    let strides = |rows: usize, cols: usize, transposed: bool| match transposed {
        true => (1isize, rows as isize),
        false => (cols as isize, 1),
    };
    let ((a_row, a_col), (b_row, b_col)) = (strides(m, k, case.a_transposed), strides(k, n, case.b_transposed));
    // SAFETY: the slices are of these shapes.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_col,
            a_row,
            b.as_ptr(),
            b_col,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(threads),
        );
    }
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(20);
    let threads = rayon::current_num_threads();
    println!("GFLOP/s, best of {rounds}, {threads} threads\n{:>24}  gemm crate    f32   bf16", "");
    for (rows, inputs, outputs) in LINEARS {
        // y = x·Wᵀ; dx = dy·W; dW = dyᵀ·x.
        for case in [
            Case { label: "y", shape: (rows, outputs, inputs), a_transposed: false, b_transposed: true },
            Case { label: "dx", shape: (rows, inputs, outputs), a_transposed: false, b_transposed: false },
            Case { label: "dW", shape: (outputs, inputs, rows), a_transposed: true, b_transposed: false },
        ] {
            let (m, n, k) = case.shape;
            let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
            let (a, b, mut c) = (wave(m * k), wave(k * n), vec![0f32; m * n]);
            let narrow = |x: &[f32]| x.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
            let (a16, b16, mut c16) = (narrow(&a), narrow(&b), vec![bf16::ZERO; m * n]);
            let mut best = [f64::MAX; 3];
            for _ in 0..rounds {
                let mut time = |slot: usize, work: &mut dyn FnMut()| {
                    let start = Instant::now();
                    work();
                    best[slot] = best[slot].min(start.elapsed().as_secs_f64());
                };
                time(0, &mut || theirs(&case, &a, &b, &mut c, threads));
                time(1, &mut || {
                    let (a, b) = (operand(&a, m, k, case.a_transposed), operand(&b, k, n, case.b_transposed));
                    Product::new(a, b, MatMut::new(&mut c, m, n)).run().expect("a product");
                });
                time(2, &mut || {
                    let (a, b) = (operand(&a16, m, k, case.a_transposed), operand(&b16, k, n, case.b_transposed));
                    Product::new(a, b, MatMut::new(&mut c16, m, n)).run().expect("a product");
                });
            }
            let rate = |slot: usize| 2.0 * (m * n * k) as f64 / best[slot] * 1e-9;
            let shape = format!("{} {m}×{n}×{k}", case.label);
            println!("{shape:>24} {:10.0} {:7.0} {:6.0}", rate(0), rate(1), rate(2));
        }
    }
}
