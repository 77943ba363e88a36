//! The normal distribution's Φ and φ, and with them GELU and its derivative, on vectors: no branches, no tables.

use super::simd::Simd;

/// `x·Φ(x)`: PyTorch's `nn.GELU()`. Within 1e-7·|x| of the exact value.
///
/// # Safety
/// [`Simd`]'s, as everywhere below.
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe { S::mul(x, cdf::<S>(x)) }
}

/// `Φ(x) + x·φ(x)`: the derivative of [`gelu`]. Within 2e-7 of the exact value.
#[inline(always)]
pub(super) unsafe fn gelu_gradient<S: Simd>(x: S::V) -> S::V {
    const SCALE: f32 = 0.398_942_3; // 1/√(2π)
    // SAFETY: the caller's.
    unsafe {
        let density = S::mul(S::splat(SCALE), exp::<S>(S::mul(S::mul(S::splat(-0.5), x), x)));
        S::fma(x, density, cdf::<S>(x))
    }
}

/// Φ(x), within 4e-8 of the exact value; the lower tail, where `1 + erf` would cancel, within 1e-5 of itself.
///
/// Φ(−√2·u) = ½·erfc(u) = ½·exp(p(u)) for u ≥ 0: p is the polynomial without constant term of least weighted error
/// |p − ln erfc|·max(½·erfc, 1e-3) on [0, 5], 2.2e-9 at most. Beyond 5, Φ < 8e-13 is taken for 0.
#[inline(always)]
unsafe fn cdf<S: Simd>(x: S::V) -> S::V {
    const P: [f32; 11] = [
        -1.128_379_5,
        -0.636_614_9,
        -0.102_801_226,
        0.019_201_93,
        0.000_128_147_32,
        -0.001_697_639_2,
        0.000_697_436_34,
        -0.000_160_827_64,
        2.276_412_1e-5,
        -1.840_398_5e-6,
        6.508_610_5e-8,
    ];
    // SAFETY: the caller's.
    unsafe {
        let zero = S::splat(0.0);
        let u = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let mut p = S::splat(P[10]);
        for c in P[..10].iter().rev() {
            p = S::fma(p, u, S::splat(*c));
        }
        let tail = S::mul(S::splat(0.5), exp::<S>(S::mul(p, S::min(S::splat(5.0), u))));
        let tail = S::if_less(S::splat(5.0), u, zero, tail);
        S::if_less(x, zero, tail, S::sub(S::splat(1.0), tail))
    }
}

/// eˣ within 2 units in the last place; 1.2e-38 for everything below −87.3.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // Adding it leaves the nearest integer in the low bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's.
    unsafe {
        let x = S::min(S::splat(88.3), S::max(S::splat(-87.3), x));
        let shifted = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(shifted, S::splat(ROUND));
        let f = S::fma(n, S::splat(-LN2_LOW), S::fma(n, S::splat(-LN2_HIGH), x));
        // Least relative error on ±ln 2 / 2: 3.1e-9.
        let mut p = S::splat(0.001_381_459_9);
        for c in [0.008_368_717, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0] {
            p = S::fma(p, f, S::splat(c));
        }
        S::mul(p, S::power_of_two(shifted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Isa, Kind, Task, dispatch_on};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Gelu,
        GeluGradient,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Task for Map<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Isa>(self) {
            for values in self.1.chunks_mut(S::LANES) {
                // SAFETY: the chunk is that long.
                unsafe {
                    let v = S::load_part(values.as_ptr(), values.len());
                    let v = match self.0 {
                        Function::Exp => exp::<S>(v),
                        Function::Gelu => gelu::<S>(v),
                        Function::GeluGradient => gelu_gradient::<S>(v),
                    };
                    S::store_part(values.as_mut_ptr(), values.len(), v);
                }
            }
        }
    }

    fn map(kind: Kind, function: Function, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        // SAFETY: the kinds are those available.
        unsafe { dispatch_on(kind, Map(function, &mut y)) };
        y
    }

    fn range(from: f32, to: f32) -> Vec<f32> {
        let steps = 200_001;
        (0..steps).map(|i| from + (to - from) * i as f32 / (steps - 1) as f32).collect()
    }

    fn cdf(x: f64) -> f64 {
        0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        for kind in Kind::available() {
            let x = range(-87.0, 88.0);
            for (x, y) in x.iter().zip(map(kind, Function::Exp, &x)) {
                let error = (f64::from(y) / f64::from(*x).exp() - 1.0).abs();
                assert!(error < 2.4e-7, "{kind:?}: exp({x}) is {y}, {error:e} off");
            }
            let odd = map(kind, Function::Exp, &[-1e9, f32::NEG_INFINITY, f32::NAN]);
            assert!(odd[0] < 1.3e-38 && odd[1] < 1.3e-38 && odd[2].is_nan(), "{kind:?}: {odd:?}");
        }
    }

    #[test]
    fn gelu_and_its_derivative_are_what_the_error_function_says() {
        for kind in Kind::available() {
            let x = range(-12.0, 12.0);
            for (x, y) in x.iter().map(|x| f64::from(*x)).zip(map(kind, Function::Gelu, &x)) {
                let error = (f64::from(y) - x * cdf(x)).abs();
                assert!(error <= 1e-7 * x.abs(), "{kind:?}: gelu({x}) is {y}, {error:e} off");
            }
            for (x, y) in x.iter().map(|x| f64::from(*x)).zip(map(kind, Function::GeluGradient, &x)) {
                let exact = cdf(x) + x * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
                let error = (f64::from(y) - exact).abs();
                assert!(error < 2e-7, "{kind:?}: gelu'({x}) is {y}, {error:e} off");
            }
            assert_eq!(map(kind, Function::Gelu, &[0.0, 40.0, -40.0]), [0.0, 40.0, 0.0]);
            for function in [Function::Gelu, Function::GeluGradient] {
                assert!(map(kind, function, &[f32::NAN])[0].is_nan(), "{kind:?}");
            }
        }
    }
}
