//! Running an exported graph on images: one session type for ONNX Runtime, tract and candle-onnx.
//!
//! A runtime that cannot run a graph says why; it never ends the program, and a panic inside one is such a reason.

#[cfg(feature = "candle-onnx")]
mod candle;
mod library;
#[cfg(feature = "ort")]
mod ort;
#[cfg(feature = "tract")]
mod tract;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use library::find_ort_library;

use super::event::{Event, Interrupted, Listener, tell};
use crate::hint::Hint;
use crate::model::Preprocessing;
use worker::{Stop, Worker};

/// A runtime this tool can drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// ONNX Runtime, from a library found on the machine.
    Ort,
    /// tract, built in.
    Tract,
    /// candle-onnx, built in.
    Candle,
}

impl Runtime {
    /// Every runtime, fastest first.
    pub const ALL: [Self; 3] = [Self::Ort, Self::Tract, Self::Candle];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ort => "ort",
            Self::Tract => "tract",
            Self::Candle => "candle",
        }
    }
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Runtime {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let found = Self::ALL.into_iter().find(|runtime| runtime.name() == text);
        found.ok_or_else(|| RuntimeError::Unknown { name: text.to_owned() })
    }
}

/// How runtimes are found and set up. The library reads no environment variable: the command line passes on the ones it
/// knows.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// ONNX Runtime's library (`ORT_DYLIB_PATH`); nothing else is tried when it is given.
    pub ort_library: Option<PathBuf>,
    /// Python or conda environments that may hold ONNX Runtime (`VIRTUAL_ENV`, `CONDA_PREFIX`), tried before the system's
    /// folders.
    pub environments: Vec<PathBuf>,
    /// Threads for one run; `None` for as many as the machine has.
    pub threads: Option<usize>,
}

impl RuntimeOptions {
    /// Threads for one run.
    #[cfg(any(feature = "tract", feature = "ort"))]
    fn thread_count(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1)
    }
}

/// Why a graph could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No such runtime.
    #[error("there is no runtime `{name}`")]
    Unknown {
        /// The name given.
        name: String,
    },
    /// This build was made without the runtime.
    #[error("this build has no {runtime}")]
    NotBuilt {
        /// The runtime.
        runtime: Runtime,
        /// The feature that adds it.
        feature: &'static str,
    },
    /// No ONNX Runtime on this machine.
    #[error("ONNX Runtime was not found in {searched} places")]
    OrtNotFound {
        /// Number of folders looked at.
        searched: usize,
    },
    /// ONNX Runtime's library is there and does not load.
    #[error("ONNX Runtime could not be loaded: {reason}")]
    OrtLibrary {
        /// The loader's reason.
        reason: String,
    },
    /// The listener ended it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The runtime does not accept the graph, or failed on it.
    #[error("{runtime} could not run it: {reason}")]
    Failed {
        /// The runtime.
        runtime: Runtime,
        /// Its reason.
        reason: String,
    },
}

impl RuntimeError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        Some(match self {
            Self::Unknown { .. } => "ort, tract and candle are".into(),
            Self::NotBuilt { feature, .. } => format!("build with the feature `{feature}`").into(),
            Self::OrtNotFound { .. } => {
                let library = "libonnxruntime.so, onnxruntime.dll or libonnxruntime.dylib";
                format!("`pip install onnxruntime`, or set ORT_DYLIB_PATH to its library ({library})").into()
            }
            Self::OrtLibrary { .. } => "set ORT_DYLIB_PATH to a library of version 1.22 or newer".into(),
            _ => return None,
        })
    }
}

/// Normalised images (B, 3, H, W), row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// `[B, 3, H, W]`.
    pub shape: [usize; 4],
    /// As many values as the shape says.
    pub values: Vec<f32>,
}

impl Images {
    /// Images that are the same on every machine and different from one another: a plane wave of its own frequency for
    /// each image and channel, plus noise, of about unit variance.
    pub fn synthetic(batch: usize, [height, width]: [usize; 2]) -> Self {
        // Numerical Recipes' linear congruential generator: quality is irrelevant, being everywhere the same is not.
        let mut state = 0x2545_f491_u32;
        let mut values = Vec::with_capacity(batch * 3 * height * width);
        for plane in 0..batch * 3 {
            let (fy, fx) = (0.07 + 0.013 * (plane % 5) as f32, 0.05 + 0.011 * (plane % 7) as f32);
            for y in 0..height {
                for x in 0..width {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                    values.push((fy * y as f32 + fx * x as f32 + plane as f32).sin() * 1.2 + noise);
                }
            }
        }
        Self { shape: [batch, 3, height, width], values }
    }

    /// The same images with other sides: what is missing at the bottom and on the right is zero, what is too much is cut off.
    pub(super) fn resized(&self, side: impl Fn(usize) -> usize) -> Self {
        let [batch, channels, height, width] = self.shape;
        let [tall, wide] = [side(height), side(width)];
        let mut values = vec![0.0; batch * channels * tall * wide];
        if wide > 0 && width > 0 {
            let planes = self.values.chunks_exact(height * width).zip(values.chunks_exact_mut(tall * wide));
            for (from, to) in planes {
                for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(wide)) {
                    let kept = width.min(wide);
                    to[..kept].copy_from_slice(&from[..kept]);
                }
            }
        }
        Self { shape: [batch, channels, tall, wide], values }
    }
}

/// Images as they are in a picture: RGB from 0 to 255, (B, H, W, 3), row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// `[B, H, W, 3]`.
    pub shape: [usize; 4],
    /// As many values as the shape says.
    pub values: Vec<u8>,
}

impl Pixels {
    /// [`Images::synthetic`], brought from about −2..2 to 0..255.
    pub fn synthetic(batch: usize, [height, width]: [usize; 2]) -> Self {
        let images = Images::synthetic(batch, [height, width]);
        let area = height * width;
        let mut values = Vec::with_capacity(images.values.len());
        for image in images.values.chunks_exact(3 * area) {
            values.extend(
                (0..area).flat_map(|at| [0, 1, 2].map(|plane| (image[plane * area + at] * 64.0 + 128.0) as u8)),
            );
        }
        Self { shape: [batch, height, width, 3], values }
    }

    /// The same images normalised.
    pub fn normalized(&self, preprocessing: &Preprocessing) -> Images {
        let [batch, height, width, _] = self.shape;
        let area = height * width;
        let [scale, shift] = preprocessing.affine();
        let mut values = Vec::with_capacity(self.values.len());
        for image in self.values.chunks_exact(3 * area) {
            for (channel, (scale, shift)) in scale.into_iter().zip(shift).enumerate() {
                let plane = image.iter().skip(channel).step_by(3);
                values.extend(plane.map(|&value| (f64::from(value) * scale + shift) as f32));
            }
        }
        Images { shape: [batch, 3, height, width], values }
    }
}

/// What a graph is run on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Feed {
    Images(Arc<Images>),
    Pixels(Arc<Pixels>),
}

impl Feed {
    /// Shape, and number of values.
    fn extent(&self) -> ([usize; 4], usize) {
        match self {
            Self::Images(images) => (images.shape, images.values.len()),
            Self::Pixels(pixels) => (pixels.shape, pixels.values.len()),
        }
    }

    /// Height and width.
    pub(super) fn size(&self) -> [usize; 2] {
        match self {
            Self::Images(images) => [images.shape[2], images.shape[3]],
            Self::Pixels(pixels) => [pixels.shape[1], pixels.shape[2]],
        }
    }
}

/// A named output of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Name in the graph.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// What each runtime's module implements; errors are its own words. A run ends early, with any error, once `stop` is asked.
trait Engine {
    fn run(&mut self, feed: &Feed, stop: &Stop) -> Result<Vec<Output>, String>;
}

/// A loaded graph, in a thread of its own; dropped, its memory is free.
pub struct Session {
    runtime: Runtime,
    worker: Worker,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

impl Session {
    /// Loads the graph `path` into `runtime`.
    ///
    /// # Errors
    /// When the runtime is not there or refuses the graph, or `hear` ends it: a runtime that does not stop within half a second is
    /// then left to end by itself.
    pub fn open(
        runtime: Runtime,
        path: &Path,
        options: &RuntimeOptions,
        hear: Listener<'_>,
    ) -> Result<Self, RuntimeError> {
        let (path, options) = (path.to_path_buf(), options.clone());
        let worker = Worker::start(runtime, move |stop| engine(runtime, &path, &options, stop), hear)?;
        Ok(Self { runtime, worker })
    }

    /// The runtime.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Every output for `images`.
    ///
    /// # Errors
    /// When the runtime fails, the graph takes pixels, or `hear` ends it.
    pub fn run(&mut self, images: Images, hear: Listener<'_>) -> Result<Vec<Output>, RuntimeError> {
        self.feed(Feed::Images(Arc::new(images)), hear)
    }

    /// The same of a graph that normalises.
    ///
    /// # Errors
    /// When the runtime fails, the graph takes normalised images, or `hear` ends it.
    pub fn run_pixels(&mut self, pixels: Pixels, hear: Listener<'_>) -> Result<Vec<Output>, RuntimeError> {
        self.feed(Feed::Pixels(Arc::new(pixels)), hear)
    }

    pub(super) fn feed(&mut self, feed: Feed, hear: Listener<'_>) -> Result<Vec<Output>, RuntimeError> {
        let runtime = self.runtime;
        let failed = |reason| RuntimeError::Failed { runtime, reason };
        let (shape, values) = feed.extent();
        if shape.iter().product::<usize>() != values || values == 0 {
            return Err(failed(format!("{values} values are not images of shape {shape:?}")));
        }
        tell(hear, Event::Running { runtime, size: feed.size() })?;
        self.worker.run(feed, hear)?.map_err(failed)
    }
}

fn engine(
    runtime: Runtime,
    path: &Path,
    options: &RuntimeOptions,
    stop: &Stop,
) -> Result<Box<dyn Engine>, RuntimeError> {
    // Which of these are used depends on the features.
    let _ = (path, options, stop);
    match runtime {
        #[cfg(feature = "ort")]
        Runtime::Ort => Ok(Box::new(ort::OnnxRuntime::open(path, options, stop)?)),
        #[cfg(feature = "tract")]
        Runtime::Tract => match tract::Tract::open(path, options) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(reason) => Err(RuntimeError::Failed { runtime, reason }),
        },
        #[cfg(feature = "candle-onnx")]
        Runtime::Candle => match candle::CandleOnnx::open(path) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(reason) => Err(RuntimeError::Failed { runtime, reason }),
        },
        #[cfg(not(feature = "ort"))]
        Runtime::Ort => Err(RuntimeError::NotBuilt { runtime, feature: "ort" }),
        #[cfg(not(feature = "tract"))]
        Runtime::Tract => Err(RuntimeError::NotBuilt { runtime, feature: "tract" }),
        #[cfg(not(feature = "candle-onnx"))]
        Runtime::Candle => Err(RuntimeError::NotBuilt { runtime, feature: "candle-onnx" }),
    }
}
