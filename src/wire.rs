//! Protocol-buffer encoding, just enough of it for ONNX and TensorBoard: varints, length-delimited fields and the reader's
//! bounded counterpart. No schema lives here; the graph writer and reader of [`crate::onnx`] and the trainer's events know
//! the field numbers.

/// Wire types ONNX uses. Groups are long gone from the format and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Delimited,
    Fixed32,
}

/// A message under construction, in memory: everything but tensor data is small.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire: u64) {
        self.raw_varint(u64::from(field) << 3 | wire);
    }

    pub(crate) fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    /// Two's complement, as protobuf's `int64` has it.
    pub(crate) fn int64(&mut self, field: u32, value: i64) {
        self.varint(field, value as u64);
    }

    pub(crate) fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    #[cfg(feature = "train")]
    pub(crate) fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn data(&mut self, field: u32, bytes: &[u8]) {
        self.announce(field, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn string(&mut self, field: u32, text: &str) {
        self.data(field, text.as_bytes());
    }

    pub(crate) fn message(&mut self, field: u32, message: &Message) {
        self.data(field, &message.0);
    }

    /// Key and length of a field whose `len` bytes are streamed behind this message.
    pub(crate) fn announce(&mut self, field: u32, len: u64) {
        self.key(field, 2);
        self.raw_varint(len);
    }
}

/// Why bytes are not a protobuf message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed at byte {offset}: {reason}")]
pub struct WireError {
    /// Where, from the start of the file.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) wire: WireType,
    /// The value of a varint or fixed field.
    pub(crate) value: u64,
    /// The contents of a delimited field.
    pub(crate) body: Reader<'a>,
}

/// Fields of a message, one after the other. Never reads outside its slice and never allocates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Offset of `bytes` in the file.
    base: usize,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, base: 0, at: 0 }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn error(&self, reason: &'static str) -> WireError {
        WireError { offset: self.base + self.at, reason }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(crate) fn raw_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.error("a number is cut off"))?;
            if shift == 63 && byte > 1 {
                return Err(self.error("a number has more than 64 bits"));
            }
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number has more than 64 bits"))
    }

    fn take(&mut self, len: u64) -> Result<Reader<'a>, WireError> {
        let left = self.bytes.len() - self.at;
        if len > left as u64 {
            return Err(self.error("a field is longer than what contains it"));
        }
        let end = self.at + len as usize;
        let body = Reader { bytes: &self.bytes[self.at..end], base: self.base + self.at, at: 0 };
        self.at = end;
        Ok(body)
    }

    fn fixed(&mut self, len: u64) -> Result<u64, WireError> {
        let body = self.take(len)?;
        Ok(body.bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// The next field, or `None` at the end.
    pub(crate) fn field(&mut self) -> Result<Option<Field<'a>>, WireError> {
        if self.is_empty() {
            return Ok(None);
        }
        let key = self.raw_varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| self.error("a field number is too large"))?;
        if number == 0 {
            return Err(self.error("a field has number 0"));
        }
        let nothing = Reader { bytes: &[], base: self.base + self.at, at: 0 };
        let (wire, value, body) = match key & 7 {
            0 => (WireType::Varint, self.raw_varint()?, nothing),
            1 => (WireType::Fixed64, self.fixed(8)?, nothing),
            2 => {
                let len = self.raw_varint()?;
                (WireType::Delimited, len, self.take(len)?)
            }
            5 => (WireType::Fixed32, self.fixed(4)?, nothing),
            _ => return Err(self.error("a field has an unknown wire type")),
        };
        Ok(Some(Field { number, wire, value, body }))
    }
}

impl<'a> Field<'a> {
    /// The nested message or bytes.
    pub(crate) fn delimited(&self) -> Result<Reader<'a>, WireError> {
        match self.wire {
            WireType::Delimited => Ok(self.body),
            _ => Err(self.body.error("a number stands where a message is expected")),
        }
    }

    /// The text.
    pub(crate) fn text(&self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.delimited()?.bytes).map_err(|_| self.body.error("a text is not UTF-8"))
    }

    /// The integer.
    pub(crate) fn varint(&self) -> Result<u64, WireError> {
        match self.wire {
            WireType::Varint => Ok(self.value),
            _ => Err(self.body.error("a message stands where a number is expected")),
        }
    }
}
