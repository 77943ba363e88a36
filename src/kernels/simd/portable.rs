//! Any processor: eight lanes in an array, which compilers turn into whatever vectors there are.

use half::bf16;

use super::Simd;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Portable;

type Lanes = [f32; 8];

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "each is the trait's condition: the pointers are valid")]
impl Simd for Portable {
    type V = Lanes;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Lanes {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        unsafe { from.cast::<Lanes>().read() }
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Lanes {
        let mut values = [0f32; 8];
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), n) };
        values
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Lanes) {
        unsafe { to.cast::<Lanes>().write(v) }
    }

    #[inline(always)]
    unsafe fn store_part(to: *mut f32, n: usize, v: Lanes) {
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, n) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Lanes {
        unsafe { from.cast::<[bf16; 8]>().read() }.map(bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut bf16, v: Lanes) {
        unsafe { to.cast::<[bf16; 8]>().write(v.map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn div(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn sqrt(v: Lanes) -> Lanes {
        v.map(f32::sqrt)
    }

    #[inline(always)]
    unsafe fn mul(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // The 64-bit Arm baseline has the instruction; on the x86 one `mul_add` is a slow call.
        std::array::from_fn(|i| match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            true => a[i].mul_add(b[i], c[i]),
            false => a[i] * b[i] + c[i],
        })
    }

    #[inline(always)]
    unsafe fn max(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn abs(v: Lanes) -> Lanes {
        v.map(f32::abs)
    }

    #[inline(always)]
    unsafe fn if_less(a: Lanes, b: Lanes, then: Lanes, otherwise: Lanes) -> Lanes {
        std::array::from_fn(|i| if a[i] < b[i] { then[i] } else { otherwise[i] })
    }

    #[inline(always)]
    unsafe fn first(n: usize, v: Lanes, rest: Lanes) -> Lanes {
        std::array::from_fn(|i| if i < n { v[i] } else { rest[i] })
    }

    #[inline(always)]
    unsafe fn power_of_two(v: Lanes) -> Lanes {
        v.map(|v| f32::from_bits((v.to_bits() << 23).wrapping_add(1f32.to_bits())))
    }
}
