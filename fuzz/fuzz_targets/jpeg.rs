//! Any bytes that begin as a JPEG does are a picture or an error; a part of it has the size it should, and at full size it is
//! that part of the whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_zoo::data::{Crop, Picture};

/// More pixels than this say nothing new, and take long.
const MOST: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    // The last bytes also choose what is decoded: behind its end marker, a JPEG may hold anything.
    let Some(&[left, top, width, height, reduce]) = bytes.last_chunk() else { return };
    let Ok(picture) = Picture::open(bytes) else { return };
    if !bytes.starts_with(b"\xff\xd8") {
        return;
    }
    let (all_columns, all_rows) = picture.dimensions();
    if u64::from(all_columns) * u64::from(all_rows) > MOST {
        return;
    }
    let part = |first: u8, len: u8, all: u32| {
        let first = u32::from(first) * (all - 1) / 255;
        (first, 1 + u32::from(len) * (all - first - 1) / 255)
    };
    let ((left, width), (top, height)) = (part(left, width, all_columns), part(top, height, all_rows));
    let crop = Crop { left, top, width, height };
    let reduce = 1 << (reduce & 3);
    if let Ok(kept) = picture.decode_part(crop, reduce) {
        let sides = [(kept.image.width, width, left), (kept.image.height, height, top)];
        for (side, len, first) in sides {
            assert_eq!(side, (first + len).div_ceil(kept.reduced) - first / kept.reduced);
        }
        assert_eq!(kept.image.pixels.len(), 3 * kept.image.width as usize * kept.image.height as usize);
        // What is wrong below a crop is only noticed in the whole, which another decoder then shows as well as it can.
        if kept.reduced == 1 && top + height == all_rows {
            let whole = Picture::open(bytes).and_then(Picture::decode).expect("it was read to its end before");
            let rows = whole.pixels.chunks_exact(3 * all_columns as usize).skip(top as usize).take(height as usize);
            let cut: Vec<u8> = rows.flat_map(|row| &row[3 * left as usize..][..3 * width as usize]).copied().collect();
            assert!(kept.image.pixels == cut, "{crop:?} differs from the whole");
        }
    }
});
