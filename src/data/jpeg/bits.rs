//! The entropy-coded part of a JPEG: bits, and the Huffman codes they spell.

use super::Trouble;

/// Codes up to this length are looked up at once.
const LOOK: u32 = 10;

/// Natural place (row · 8 + column) of the k-th coefficient of a block.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One Huffman table.
#[derive(Clone)]
pub(super) struct Table {
    /// For the next `LOOK` bits: symbol << 8 | length; length 0 for longer codes.
    look: Vec<u16>,
    /// For the next `LOOK` bits of an AC table, a whole coefficient: value << 16 | run << 8 | bits; 0 when it takes more.
    whole: Vec<i32>,
    /// By length: the first code beyond it, left-aligned in 16 bits.
    limits: [u32; 17],
    /// By length: index of a code's symbol, less the code.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// A table of `counts[i]` codes of length i + 1; none if there are more codes than bits for them.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table = Self {
            look: vec![0; 1 << LOOK],
            whole: vec![0; 1 << LOOK],
            limits: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            let count = u32::from(counts[length as usize - 1]);
            table.offsets[length as usize] = index as i32 - code as i32;
            if code + count > 1 << length {
                return None;
            }
            for _ in 0..count {
                if length <= LOOK {
                    let entry = u16::from(*symbols.get(index)?) << 8 | length as u16;
                    let first = (code << (LOOK - length)) as usize;
                    table.look[first..first + (1 << (LOOK - length))].fill(entry);
                }
                code += 1;
                index += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        for next in 0..1_u32 << LOOK {
            let entry = u32::from(table.look[next as usize]);
            let (length, run, size) = (entry & 0xff, entry >> 12, entry >> 8 & 15);
            if length > 0 && size > 0 && length + size <= LOOK {
                let bits = next << length & ((1 << LOOK) - 1);
                let value = extended(bits >> (LOOK - size), size);
                table.whole[next as usize] = value << 16 | (run << 8 | (length + size)) as i32;
            }
        }
        Some(table)
    }
}

/// The number that `size` bits stand for: those with a leading zero are negative.
#[inline(always)]
fn extended(bits: u32, size: u32) -> i32 {
    let negative = (bits >> (size - 1) & 1) ^ 1;
    bits as i32 - (negative as i32 * ((1 << size) - 1))
}

/// Reads bits, most significant first, past stuffed zeros and up to the next marker.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, left-aligned.
    next: u64,
    count: u32,
    /// Zeros that were made up behind the end, among `count` or already used.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, next: 0, count: 0, made_up: 0 }
    }

    /// Sees to it that at least 32 bits are there.
    #[inline(always)]
    fn refill(&mut self) {
        if self.count < 32 {
            self.refill_now();
        }
    }

    #[inline]
    fn refill_now(&mut self) {
        if let Some(bytes) = self.data.get(self.at..self.at + 4) {
            let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            // No byte is 0xff: none of the inverted is zero.
            let inverted = !word;
            if inverted.wrapping_sub(0x0101_0101) & !inverted & 0x8080_8080 == 0 {
                self.next |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.at += 4;
                return;
            }
        }
        while self.count <= 56 {
            let byte = match self.data.get(self.at) {
                Some(0xff) if self.data.get(self.at + 1) == Some(&0) => {
                    self.at += 2;
                    0xff
                }
                Some(&byte) if byte != 0xff => {
                    self.at += 1;
                    byte
                }
                _ => {
                    self.made_up += 8;
                    0
                }
            };
            self.next |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    #[inline(always)]
    fn consume(&mut self, bits: u32) {
        self.next <<= bits;
        self.count -= bits;
    }

    /// The next symbol; needs 16 bits, leaves 16 of 32.
    #[inline(always)]
    fn symbol(&mut self, table: &Table) -> Result<u32, Trouble> {
        let entry = u32::from(table.look[(self.next >> (64 - LOOK)) as usize]);
        if entry & 0xff != 0 {
            self.consume(entry & 0xff);
            return Ok(entry >> 8);
        }
        self.long_symbol(table)
    }

    #[cold]
    fn long_symbol(&mut self, table: &Table) -> Result<u32, Trouble> {
        let next = (self.next >> 48) as u32;
        for length in LOOK + 1..=16 {
            if next < table.limits[length as usize] {
                let code = (next >> (16 - length)) as i32;
                let index = usize::try_from(code + table.offsets[length as usize]).map_err(|_| Trouble::Corrupt)?;
                self.consume(length);
                return table.symbols.get(index).map(|&symbol| u32::from(symbol)).ok_or(Trouble::Corrupt);
            }
        }
        Err(self.trouble())
    }

    /// What is wrong where bits make no sense.
    fn trouble(&self) -> Trouble {
        if self.made_up > self.count && self.at + 1 >= self.data.len() { Trouble::Truncated } else { Trouble::Corrupt }
    }

    /// Fails when bits behind the end were used.
    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), Trouble> {
        if self.made_up > self.count { Err(self.trouble()) } else { Ok(()) }
    }

    /// Up to 16 bits as a number.
    #[inline(always)]
    fn number(&mut self, size: u32) -> i32 {
        let value = extended((self.next >> (64 - size)) as u32, size);
        self.consume(size);
        value
    }

    /// The next block: its DC coefficient is added to `dc`, its others go to `block` if they are wanted. Returns whether there
    /// are others.
    #[inline(always)]
    pub(super) fn block<const WANTED: bool>(
        &mut self,
        dc_table: &Table,
        ac_table: &Table,
        dc: &mut i32,
        block: &mut [i16; 64],
    ) -> Result<bool, Trouble> {
        self.refill();
        let size = self.symbol(dc_table)?;
        if size > 15 {
            return Err(Trouble::Corrupt);
        }
        if size > 0 {
            *dc = dc.wrapping_add(self.number(size));
        }
        if WANTED {
            block[0] = *dc as i16;
        }
        let mut k = 1;
        let mut any = false;
        while k < 64 {
            self.refill();
            let whole = ac_table.whole[(self.next >> (64 - LOOK)) as usize];
            let (run, value) = if whole != 0 {
                self.consume(whole as u32 & 0xff);
                (whole as u32 >> 8 & 0xff, whole >> 16)
            } else {
                let symbol = self.symbol(ac_table)?;
                let (run, size) = (symbol >> 4, symbol & 15);
                if size == 0 {
                    if run < 15 {
                        break;
                    }
                    k += 16;
                    continue;
                }
                (run, self.number(size))
            };
            k += run as usize;
            if k > 63 {
                return Err(self.trouble());
            }
            if WANTED {
                block[usize::from(ZIGZAG[k])] = value as i16;
            }
            any = true;
            k += 1;
        }
        Ok(any)
    }

    /// Goes on behind the next restart marker.
    pub(super) fn restart(&mut self) -> Result<(), Trouble> {
        (self.next, self.count, self.made_up) = (0, 0, 0);
        while self.data.get(self.at..self.at + 2) == Some(&[0xff, 0xff]) {
            self.at += 1;
        }
        match self.data.get(self.at..self.at + 2) {
            Some([0xff, 0xd0..=0xd7]) => {
                self.at += 2;
                Ok(())
            }
            Some(_) => Err(Trouble::Corrupt),
            None => Err(Trouble::Truncated),
        }
    }
}
