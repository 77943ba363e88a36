//! f32 and bf16 as packing sees them.

use half::bf16;

/// A stored value.
pub(in crate::kernels) trait Element: Copy + Send + Sync {
    /// Exact.
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}
