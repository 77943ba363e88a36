//! The curves of one run, or of several over one another: a panel for each quantity any of them has.

use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;

use super::picture::{self, Drawing};
use crate::destination::{Destination, DestinationError};
use crate::hint::{Command, Hint};
use crate::train::StepRecord;

/// A run to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What to call it.
    pub name: String,
    /// Its updates.
    pub records: Vec<StepRecord>,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// Nothing to draw.
    #[error("`{run}` has no updates to draw yet")]
    Empty {
        /// The run.
        run: String,
    },
    /// A run's metrics could not be read.
    #[error("cannot read the metrics of `{run}`")]
    Read {
        /// The run.
        run: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The picture could not be drawn.
    #[error("cannot draw: {reason}")]
    Draw {
        /// The drawing library's reason.
        reason: String,
    },
    /// A picture of a kind that is not drawn.
    #[error("`{path}` cannot be written: pictures are `.svg` or `.png`, not `.{ending}`")]
    Format {
        /// The file.
        path: String,
        /// The ending of its name.
        ending: String,
    },
    /// The picture cannot go where it was meant to.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The picture could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ViewError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Read { .. } => {
                let pretrain = Command::new("pretrain").set("out", "DIR");
                Some(Hint::new().words("a run is the folder that ").command(pretrain).words(" made"))
            }
            Self::Destination(error) => error.hint(),
            _ => None,
        }
    }
}

/// Panel size in pixels.
const PANEL: (u32, u32) = (960, 260);
/// Points of a line; more do not fit into its pixels.
const POINTS: usize = 960;

type Quantity = (&'static str, fn(&StepRecord) -> Option<f64>);

const QUANTITIES: [Quantity; 7] = [
    ("loss", |record| Some(record.loss)),
    ("feature loss", |record| record.feature),
    ("attention loss", |record| record.attention),
    ("pixel loss", |record| record.pixels),
    ("gradient norm", |record| Some(record.grad_norm)),
    ("learning rate", |record| Some(record.lr)),
    ("images per second", |record| Some(record.images_per_second)),
];

/// Draws `runs` against epochs to `out`: as PNG where its name ends in `.png`, as SVG where it ends in `.svg` or has no ending.
///
/// # Errors
/// [`ViewError`].
pub fn curves(runs: &[Curve], out: impl Into<Destination>) -> Result<(), ViewError> {
    if let Some(run) = runs.iter().find(|run| run.records.is_empty()) {
        return Err(ViewError::Empty { run: run.name.clone() });
    }
    picture::write(&Curves(runs), &out.into())
}

struct Curves<'a>(&'a [Curve]);

impl Curves<'_> {
    fn panels(&self) -> Vec<&'static Quantity> {
        let has = |(_, of): &&Quantity| self.0.iter().any(|run| run.records.iter().any(|record| of(record).is_some()));
        QUANTITIES.iter().filter(has).collect()
    }
}

impl Drawing for Curves<'_> {
    fn size(&self) -> (u32, u32) {
        (PANEL.0, PANEL.1 * self.panels().len() as u32)
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), String> {
        let panels = self.panels();
        let areas = area.split_evenly((panels.len(), 1));
        areas.iter().zip(panels).try_for_each(|(area, (name, of))| panel(area, self.0, name, *of))
    }
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    runs: &[Curve],
    name: &str,
    of: fn(&StepRecord) -> Option<f64>,
) -> Result<(), String> {
    let lines: Vec<Vec<(f64, f64)>> = runs.iter().map(|run| thinned(&run.records, of)).collect();
    let [x, y] = [|point: &(f64, f64)| point.0, |point: &(f64, f64)| point.1].map(|axis| range(&lines, axis));
    let failed = |error: DrawingAreaErrorKind<B::ErrorType>| error.to_string();
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .light_line_style(WHITE)
        .y_label_formatter(&|value| number(*value))
        .draw()
        .map_err(failed)?;
    for (at, (run, line)) in runs.iter().zip(lines).enumerate() {
        let color = Palette99::pick(at).to_rgba();
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)))
            .map_err(failed)?
            .label(&run.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    if runs.len() > 1 {
        let mut labels = chart.configure_series_labels();
        labels.border_style(BLACK.mix(0.3)).background_style(WHITE.mix(0.8)).draw().map_err(failed)?;
    }
    Ok(())
}

/// At most [`POINTS`] points, each the mean of as many neighbours.
fn thinned(records: &[StepRecord], of: fn(&StepRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = records.iter().filter_map(|record| Some((record.epoch, of(record)?))).collect();
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|point| point.0).sum::<f64>() / n, part.iter().map(|point| point.1).sum::<f64>() / n)
    };
    points.chunks(points.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

/// From the smallest to the largest value, a little wider, and never empty.
fn range(lines: &[Vec<(f64, f64)>], axis: fn(&(f64, f64)) -> f64) -> std::ops::Range<f64> {
    let values = lines.iter().flatten().map(axis);
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let margin = ((high - low) * 0.02).max(high.abs().max(1e-12) * 1e-3);
    low - margin..high + margin
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.0}"),
    }
}
