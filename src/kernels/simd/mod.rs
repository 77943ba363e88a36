//! Vectors of f32 behind one trait, so that each kernel is written once and compiled for every instruction set.
//!
//! A kernel is a [`Task`]; [`dispatch_on`] runs it in a function compiled for one of them.
//! Everything it calls is `#[inline(always)]`, or it would be compiled for the baseline and its vectors passed through
//! memory.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

/// An instruction set.
///
/// # Safety
/// All functions need the instruction set to be there: they are called inside [`dispatch_on`] only. The loads and stores
/// need their pointers to be valid for `LANES` values, or for the `n` ≤ `LANES` given.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// `LANES` values.
    type V: Copy;
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// The first `n` values, zeros after them.
    unsafe fn load_part(from: *const f32, n: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_part(to: *mut f32, n: usize, v: Self::V);
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    /// To nearest, ties to even.
    unsafe fn store_bf16(to: *mut bf16, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(v: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once where the processor can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// NaN where `b` is.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// NaN where `b` is.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(v: Self::V) -> Self::V;
    /// `a < b ? then : otherwise`.
    unsafe fn if_less(a: Self::V, b: Self::V, then: Self::V, otherwise: Self::V) -> Self::V;
    /// The first `n` lanes of `v`, then those of `rest`.
    unsafe fn first(n: usize, v: Self::V, rest: Self::V) -> Self::V;
    /// `2ⁿ`, where the low bits of `v`'s significand are the integer n.
    unsafe fn power_of_two(v: Self::V) -> Self::V;

    /// Sum of the lanes, in an order of its own.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: LANES ≤ 16.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = Self::LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// Largest lane.
    #[inline(always)]
    unsafe fn largest(v: Self::V) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        // SAFETY: LANES ≤ 16.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// Fetches the line at `at`.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    /// Makes the line at `at` ready to be written.
    #[inline(always)]
    unsafe fn prefetch_to_write(_at: *const u8) {}

    #[inline(always)]
    unsafe fn load_part_bf16(from: *const bf16, n: usize) -> Self::V {
        let mut values = [bf16::ZERO; 16];
        // SAFETY: `n` ≤ LANES ≤ 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), n);
            Self::load_bf16(values.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_part_bf16(to: *mut bf16, n: usize, v: Self::V) {
        let mut values = [bf16::ZERO; 16];
        // SAFETY: `n` ≤ LANES ≤ 16.
        unsafe {
            Self::store_bf16(values.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, n);
        }
    }
}

/// A number as it is stored: computed with as f32, widened exactly and rounded to nearest, ties to even.
///
/// # Safety
/// As [`Simd`]'s loads and stores; `n` ≤ `LANES` values.
pub(super) trait Lane: Copy + Send + Sync {
    fn widen(self) -> f32;
    unsafe fn load<S: Simd>(from: *const Self, n: usize) -> S::V;
    unsafe fn store<S: Simd>(to: *mut Self, n: usize, v: S::V);
}

impl Lane for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { if n == S::LANES { S::load(from) } else { S::load_part(from, n) } }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, n: usize, v: S::V) {
        // SAFETY: the caller's.
        unsafe { if n == S::LANES { S::store(to, v) } else { S::store_part(to, n, v) } }
    }
}

impl Lane for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { if n == S::LANES { S::load_bf16(from) } else { S::load_part_bf16(from, n) } }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut bf16, n: usize, v: S::V) {
        // SAFETY: the caller's.
        unsafe { if n == S::LANES { S::store_bf16(to, v) } else { S::store_part_bf16(to, n, v) } }
    }
}

/// `for` over `0..len` in steps of a vector: `i` is where it starts, `n` how many of its lanes count. The body is there
/// twice, so that in all but the last round `n` is known to be `LANES`.
macro_rules! vectors {
    ($S:ident, $len:expr, |$i:ident, $n:ident| $body:block) => {
        let len: usize = $len;
        let mut $i = 0;
        while $i + $S::LANES <= len {
            let $n = $S::LANES;
            $body
            $i += $S::LANES;
        }
        if $i < len {
            let $n = len - $i;
            $body
        }
    };
}
pub(super) use vectors;

/// Work to be compiled for each instruction set.
pub(super) trait Task {
    type Output;

    /// Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// `S` is there.
    unsafe fn run<S: Isa>(self) -> Self::Output;
}

pub(super) use super::gemm::Isa;

/// The instruction sets there is code for, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kind {
    /// Those of this processor, best first.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            (is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma"))
            .then_some(Self::Avx512),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let vectors = [None, None];
        vectors.into_iter().flatten().chain([Self::Portable])
    }

    /// The best of this processor.
    pub(super) fn best() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }
}

/// Runs `task` with the best instruction set.
#[inline]
pub(super) fn dispatch<T: Task>(task: T) -> T::Output {
    // SAFETY: the best is available.
    unsafe { dispatch_on(Kind::best(), task) }
}

/// Runs `task` with `kind`.
///
/// # Safety
/// `kind` is available.
#[inline]
pub(super) unsafe fn dispatch_on<T: Task>(kind: Kind, task: T) -> T::Output {
    // SAFETY: the caller's.
    unsafe {
        match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512::run(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::run(task),
            Kind::Portable => task.run::<Portable>(),
        }
    }
}
