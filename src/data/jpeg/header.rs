//! What stands before the pixels of a JPEG.

use super::bits::{Table, ZIGZAG};

/// How the components are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Grey,
    YCbCr,
    Rgb,
}

/// One component of the image.
pub(super) struct Component {
    /// Blocks of it in an MCU, across and down.
    pub(super) across: usize,
    pub(super) down: usize,
    /// Dequantisation factors in natural order.
    pub(super) quant: [i32; 64],
    pub(super) dc: Table,
    pub(super) ac: Table,
}

/// A baseline JPEG of one scan.
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) colour: Colour,
    pub(super) components: Vec<Component>,
    /// MCUs between restart markers; 0 for none.
    pub(super) restart: u32,
    /// Where the entropy-coded data begins.
    pub(super) scan: usize,
}

/// What a frame header says of a component.
struct Frame {
    id: u8,
    across: usize,
    down: usize,
    quant: usize,
}

impl Header {
    /// None for whatever is not decoded here, broken headers included.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..2)? != [0xff, 0xd8] {
            return None;
        }
        let mut quants: [Option<[i32; 64]>; 4] = [None; 4];
        let mut dcs: [Option<Table>; 4] = [const { None }; 4];
        let mut acs: [Option<Table>; 4] = [const { None }; 4];
        let (mut jfif, mut adobe, mut restart) = (false, None, 0);
        let mut frame: Option<(u32, u32, Vec<Frame>)> = None;
        let mut at = 2;
        loop {
            if *bytes.get(at)? != 0xff {
                return None;
            }
            while *bytes.get(at)? == 0xff {
                at += 1;
            }
            let marker = bytes[at];
            let len = usize::from(u16::from_be_bytes(bytes.get(at + 1..at + 3)?.try_into().ok()?));
            let body = bytes.get(at + 3..at + 1 + len)?;
            at += 1 + len;
            match marker {
                0xdb => quantisation(body, &mut quants)?,
                0xc4 => huffman(body, &mut dcs, &mut acs)?,
                0xdd => restart = u32::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?)),
                0xe0 => jfif |= body.starts_with(b"JFIF\0"),
                0xee if body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
                0xc0 | 0xc1 if frame.is_none() => frame = Some(frame_of(body)?),
                0xda => {
                    break scan_of(body, frame?, [jfif.into(), adobe.map_or(2, u8::from)], &quants, &dcs, &acs).map(
                        |(width, height, colour, components)| Self {
                            width,
                            height,
                            colour,
                            components,
                            restart,
                            scan: at,
                        },
                    );
                }
                // Other ways of coding, and what must not stand here.
                0xc0..=0xcf | 0xd0..=0xd9 | 0xdc | 0xde | 0xdf => return None,
                _ => {}
            }
        }
    }
}

fn quantisation(mut body: &[u8], quants: &mut [Option<[i32; 64]>; 4]) -> Option<()> {
    while let Some((&kind, rest)) = body.split_first() {
        let wide = kind >> 4 != 0;
        let len = if wide { 128 } else { 64 };
        let values = rest.get(..len)?;
        let mut table = [0; 64];
        for (k, &natural) in ZIGZAG.iter().enumerate() {
            table[usize::from(natural)] = match wide {
                true => i32::from(u16::from_be_bytes([values[2 * k], values[2 * k + 1]])),
                false => i32::from(values[k]),
            };
        }
        *quants.get_mut(usize::from(kind & 15))? = Some(table);
        body = &rest[len..];
    }
    Some(())
}

fn huffman(mut body: &[u8], dcs: &mut [Option<Table>; 4], acs: &mut [Option<Table>; 4]) -> Option<()> {
    while let Some((&kind, rest)) = body.split_first() {
        let counts: &[u8; 16] = rest.get(..16)?.try_into().ok()?;
        let codes: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let symbols = rest.get(16..16 + codes)?;
        let tables = match kind >> 4 {
            0 => &mut *dcs,
            1 => &mut *acs,
            _ => return None,
        };
        *tables.get_mut(usize::from(kind & 15))? = Some(Table::new(counts, symbols)?);
        body = &rest[16 + codes..];
    }
    Some(())
}

fn frame_of(body: &[u8]) -> Option<(u32, u32, Vec<Frame>)> {
    let &[precision, h1, h0, w1, w0, count, ref components @ ..] = body else { return None };
    let (height, width) = (u16::from_be_bytes([h1, h0]), u16::from_be_bytes([w1, w0]));
    if precision != 8 || width == 0 || height == 0 || components.len() != 3 * usize::from(count) {
        return None;
    }
    let components = components.as_chunks::<3>().0.iter().map(|&[id, sampling, quant]| Frame {
        id,
        across: usize::from(sampling >> 4),
        down: usize::from(sampling & 15),
        quant: usize::from(quant),
    });
    Some((width.into(), height.into(), components.collect()))
}

/// Puts together what a scan of all components needs.
fn scan_of(
    body: &[u8],
    (width, height, mut frame): (u32, u32, Vec<Frame>),
    [jfif, adobe]: [u8; 2],
    quants: &[Option<[i32; 64]>; 4],
    dcs: &[Option<Table>; 4],
    acs: &[Option<Table>; 4],
) -> Option<(u32, u32, Colour, Vec<Component>)> {
    let (&count, rest) = body.split_first()?;
    let count = usize::from(count);
    if count != frame.len() || rest.len() != 2 * count + 3 || rest[2 * count..] != [0, 63, 0] {
        return None;
    }
    let colour = match (&frame[..], jfif, adobe) {
        ([_], ..) => Colour::Grey,
        // As libjpeg decides: JFIF is YCbCr, Adobe says so, and else the names of the components do.
        ([_, _, _], 1, _) | ([_, _, _], _, 1) => Colour::YCbCr,
        ([_, _, _], _, 0) => Colour::Rgb,
        ([red, green, blue], ..) if [red.id, green.id, blue.id] == *b"RGB" => Colour::Rgb,
        ([_, _, _], ..) => Colour::YCbCr,
        _ => return None,
    };
    match &mut frame[..] {
        // An MCU of a scan of one component is a block, whatever its sampling factors.
        [grey] => (grey.across, grey.down) = (1, 1),
        [first, others @ ..] => {
            let known = matches!((first.across, first.down), (1, 1) | (2, 1) | (2, 2));
            if !known || others.iter().any(|other| (other.across, other.down) != (1, 1)) {
                return None;
            }
        }
        [] => return None,
    }
    let components = frame.iter().zip(rest.as_chunks::<2>().0).map(|(component, &[id, tables])| {
        Some(Component {
            across: component.across,
            down: component.down,
            quant: (*quants.get(component.quant)?)?,
            dc: dcs.get(usize::from(tables >> 4)).filter(|_| id == component.id)?.clone()?,
            ac: acs.get(usize::from(tables & 15))?.clone()?,
        })
    });
    Some((width, height, colour, components.collect::<Option<_>>()?))
}
