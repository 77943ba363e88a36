//! A picture as a file: SVG, or PNG of the same drawing, as the ending of its name says.

use std::io::{Cursor, Write as _};
use std::sync::Once;

use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::ViewError;
use crate::destination::Destination;

/// What pictures are written with; no font of the system is asked for. See `font/README.md`.
const FONT: &[u8] = include_bytes!("font/DejaVuSans.ttf");

/// Something to draw.
pub(super) trait Drawing {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws it; why it could not, in words.
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), String>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
}

impl Format {
    /// By the ending of the name; SVG where it has none.
    fn of(out: &Destination) -> Result<Self, ViewError> {
        let Some(ending) = out.path().extension() else { return Ok(Self::Svg) };
        match ending.to_string_lossy().to_ascii_lowercase().as_str() {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            ending => Err(ViewError::Format { path: out.path().display().to_string(), ending: ending.to_owned() }),
        }
    }
}

/// Draws `drawing` to `out`.
pub(super) fn write(drawing: &impl Drawing, out: &Destination) -> Result<(), ViewError> {
    let format = Format::of(out)?;
    out.check_file()?;
    let bytes = match format {
        Format::Svg => svg(drawing),
        Format::Png => png(drawing),
    };
    let bytes = bytes.map_err(|reason| ViewError::Draw { reason })?;
    let mut staged = out.file_output()?;
    let failed = |source| ViewError::Write { path: out.path().display().to_string(), source };
    staged.file().write_all(&bytes).map_err(failed)?;
    Ok(staged.commit()?)
}

fn svg(drawing: &impl Drawing) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    paint(drawing, SVGBackend::with_string(&mut text, drawing.size()))?;
    Ok(text.into_bytes())
}

fn png(drawing: &impl Drawing) -> Result<Vec<u8>, String> {
    let (width, height) = drawing.size();
    let mut pixels = vec![0; width as usize * height as usize * 3];
    paint(drawing, BitMapBackend::with_buffer(&mut pixels, (width, height)))?;
    let mut bytes = Cursor::new(Vec::new());
    let encoder = PngEncoder::new(&mut bytes);
    encoder.write_image(&pixels, width, height, ExtendedColorType::Rgb8).map_err(|error| error.to_string())?;
    Ok(bytes.into_inner())
}

fn paint<B: DrawingBackend>(drawing: &impl Drawing, backend: B) -> Result<(), String> {
    static FONT_IS_KNOWN: Once = Once::new();
    // The font is a constant that the tests draw with.
    FONT_IS_KNOWN.call_once(|| drop(register_font("sans-serif", FontStyle::Normal, FONT)));
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    drawing.draw(&area)?;
    area.present().map_err(|error| error.to_string())
}
