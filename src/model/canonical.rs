//! A model directory in the common format: `model.safetensors` and `config.json`, with `adapters.safetensors`,
//! `neck.safetensors`, `decoder.safetensors` and `golden.safetensors` beside them where they exist.
//!
//! Opening one proves that its files hold exactly the parameters its configuration says, before anything reads a value.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{ModelConfig, ParameterSpec, adapter_parameters, neck_parameters, vit_parameters};
use crate::hint::{Command, Hint};

/// The files of a model directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFile {
    /// The plain backbone: loads strictly in timm.
    Model,
    /// TEC's adapters.
    Adapters,
    /// A fine-tuned detector's or segmenter's neck.
    Neck,
    /// A pretraining decoder, with its upstream names.
    Decoder,
    /// Stored activations for `verify`.
    Golden,
    /// timm's hub configuration plus the `tec_zoo` section.
    Config,
}

impl ModelFile {
    /// Every file a model directory may have.
    pub const ALL: [Self; 6] = [Self::Config, Self::Model, Self::Adapters, Self::Neck, Self::Decoder, Self::Golden];

    /// File name in the directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model.safetensors",
            Self::Adapters => "adapters.safetensors",
            Self::Neck => "neck.safetensors",
            Self::Decoder => "decoder.safetensors",
            Self::Golden => "golden.safetensors",
            Self::Config => "config.json",
        }
    }
}

/// Why a directory is not a model in the common format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CanonicalError {
    /// The file could not be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a model directory at all.
    #[error("`{path}` is not a model directory: it has no {missing}")]
    NotAModel {
        /// The directory.
        path: String,
        /// The file that should be there.
        missing: &'static str,
    },
    /// `config.json` is not what this tool writes.
    #[error("cannot use `{path}`: {reason}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file is malformed.
    #[error("cannot use `{path}`: {reason}")]
    Safetensors {
        /// The file.
        path: String,
        /// The parser's reason, with its own causes.
        reason: String,
    },
    /// The tensors are not the ones the configuration promises.
    #[error("`{path}` does not hold the model its config.json describes:\n{problems}")]
    Mismatch {
        /// The file.
        path: String,
        /// One line for each problem.
        problems: String,
    },
}

impl CanonicalError {
    /// What to do next.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::NotAModel { .. } => {
                let convert = Command::new("convert").word("FILE").set("out", "DIR");
                Some(Hint::new().command(convert).words(" makes one"))
            }
            _ => None,
        }
    }
}

/// One tensor of a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: &'a [usize],
    /// Row-major little-endian bytes, in the map.
    pub bytes: &'a [u8],
}

/// A memory-mapped safetensors file.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    map: Arc<Mmap>,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Range<usize>),
    #[cfg_attr(not(feature = "train"), expect(dead_code, reason = "only a training's checkpoint has such"))]
    Own(Vec<u8>),
}

/// Where the values of a tensor of [`Weights::parts`] are.
#[cfg(feature = "train")]
#[derive(Debug)]
pub(crate) enum Part<'a> {
    /// From value `start` on of the file's f32 tensor `tensor`.
    Of {
        /// Its name.
        tensor: &'a str,
        /// Values before the first.
        start: usize,
    },
    /// Here.
    Own(Vec<f32>),
}

impl Weights {
    /// Maps `path` and checks its header.
    pub fn open(path: &Path) -> Result<Self, CanonicalError> {
        let io = |source| CanonicalError::Io { path: path.display().to_string(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            // An empty file cannot be mapped; say what it is instead of the system's `invalid argument`.
            let reason = safetensors::SafeTensorError::HeaderTooSmall.to_string();
            return Err(CanonicalError::Safetensors { path: path.display().to_string(), reason });
        }
        // SAFETY: the map is read-only. As with every mapped file, a writer that shortens it under us ends the process
        // with SIGBUS; the tool itself only ever replaces files by rename, which leaves old maps whole.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let bad = |error: safetensors::SafeTensorError| CanonicalError::Safetensors {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(bad)?;
        let start = 8 + header_len;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (from, to) = info.data_offsets;
                let bytes = Bytes::Mapped(start + from..start + to);
                (name, Stored { dtype: info.dtype, shape: info.shape.clone(), bytes })
            })
            .collect();
        Ok(Self { path: path.to_path_buf(), map: Arc::new(map), metadata, tensors })
    }

    /// The same file as f32 tensors of other names and shapes, with some of their own beside them. Nothing is copied; the
    /// map stays as long as any of them does, whatever becomes of the file. `None` where the file does not have a part.
    #[cfg(feature = "train")]
    pub(crate) fn parts<'a>(&self, parts: impl IntoIterator<Item = (ParameterSpec, Part<'a>)>) -> Option<Self> {
        let mut tensors = BTreeMap::new();
        for (spec, part) in parts {
            let count = spec.shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side))?;
            let bytes = match part {
                Part::Own(values) if values.len() == count => {
                    Bytes::Own(values.iter().flat_map(|value| value.to_le_bytes()).collect())
                }
                Part::Own(_) => return None,
                Part::Of { tensor, start } => {
                    let Stored { dtype: Dtype::F32, bytes: Bytes::Mapped(whole), .. } = self.tensors.get(tensor)?
                    else {
                        return None;
                    };
                    let from = whole.start.checked_add(start.checked_mul(4)?)?;
                    let to = from.checked_add(count.checked_mul(4)?).filter(|to| *to <= whole.end)?;
                    Bytes::Mapped(from..to)
                }
            };
            tensors.insert(spec.name, Stored { dtype: Dtype::F32, shape: spec.shape, bytes });
        }
        Some(Self { path: self.path.clone(), map: self.map.clone(), metadata: BTreeMap::new(), tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every byte of the file, as it was when it was opened.
    #[cfg(feature = "train")]
    pub(crate) fn file_bytes(&self) -> &[u8] {
        &self.map
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor, by name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let Stored { dtype, shape, bytes } = self.tensors.get(name)?;
        let bytes = match bytes {
            Bytes::Mapped(range) => &self.map[range.clone()],
            Bytes::Own(bytes) => bytes,
        };
        Some(TensorView { dtype: *dtype, shape, bytes })
    }

    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Gives the memory of what was read back to the system; it is read anew when it is needed again.
    pub fn release(&self) {
        // SAFETY: the map is of a file, and read-only: its pages come back from the file as they were.
        #[cfg(unix)]
        let released = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        // Where the system will not, it stays as it is.
        #[cfg(unix)]
        drop(released);
    }

    fn require(&self, specs: &[ParameterSpec]) -> Result<(), CanonicalError> {
        let mut problems = Vec::new();
        for spec in specs {
            match self.tensors.get(&spec.name) {
                None => problems.push(format!("  {} is missing", spec.name)),
                Some(Stored { dtype, shape, .. }) => {
                    if *shape != spec.shape {
                        problems.push(format!("  {} is {shape:?}, not {:?}", spec.name, spec.shape));
                    }
                    if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
                        problems.push(format!("  {} is {dtype}, not a float", spec.name));
                    }
                }
            }
        }
        for name in self.tensors.keys().filter(|name| !specs.iter().any(|spec| spec.name == **name)) {
            problems.push(format!("  {name} is unexpected"));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(CanonicalError::Mismatch { path: self.path.display().to_string(), problems: problems.join("\n") })
    }
}

/// A model in the common format, proven to hold the parameters it promises.
#[derive(Debug)]
pub struct Canonical {
    dir: PathBuf,
    /// Whether the files of the common format are in `dir`.
    has_files: bool,
    config: ModelConfig,
    model: Weights,
    adapters: Option<Weights>,
    neck: Option<Weights>,
}

impl Canonical {
    /// Opens the directory `dir`.
    pub fn open(dir: &Path) -> Result<Self, CanonicalError> {
        let config = Self::read_config(dir)?;
        let model = Weights::open(&dir.join(ModelFile::Model.name()))?;
        model.require(&vit_parameters(&config.vit))?;
        let adapters = match &config.vit.adapters {
            None => None,
            Some(adapters) => {
                let weights = Weights::open(&dir.join(ModelFile::Adapters.name()))?;
                weights.require(&adapter_parameters(adapters, config.vit.width))?;
                Some(weights)
            }
        };
        let neck = match &config.vit.neck {
            None => None,
            Some(neck) => {
                let weights = Weights::open(&dir.join(ModelFile::Neck.name()))?;
                weights.require(&neck_parameters(neck, config.vit.width))?;
                Some(weights)
            }
        };
        Ok(Self { dir: dir.to_path_buf(), has_files: true, config, model, adapters, neck })
    }

    /// The model `config` describes, of weights that lie otherwise in the folder `dir`.
    ///
    /// # Errors
    /// [`CanonicalError::Mismatch`].
    #[cfg(feature = "train")]
    pub(crate) fn of_parts(
        dir: &Path,
        config: ModelConfig,
        model: Weights,
        adapters: Option<Weights>,
    ) -> Result<Self, CanonicalError> {
        model.require(&vit_parameters(&config.vit))?;
        if let (Some(shape), Some(weights)) = (&config.vit.adapters, &adapters) {
            weights.require(&adapter_parameters(shape, config.vit.width))?;
        }
        Ok(Self { dir: dir.to_path_buf(), has_files: false, config, model, adapters, neck: None })
    }

    /// Reads the `tec_zoo` section of `dir/config.json`.
    pub fn read_config(dir: &Path) -> Result<ModelConfig, CanonicalError> {
        let path = dir.join(ModelFile::Config.name());
        let shown = path.display().to_string();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source)
                if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                return Err(CanonicalError::NotAModel { path: dir.display().to_string(), missing: "config.json" });
            }
            Err(source) => return Err(CanonicalError::Io { path: shown, source }),
        };
        let bad = |reason: String| CanonicalError::Config { path: shown.clone(), reason };
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let section = json.get("tec_zoo").ok_or_else(|| bad("it has no `tec_zoo` section".into()))?;
        match section.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(ModelConfig::FORMAT) => {}
            Some(format) => {
                let newest = ModelConfig::FORMAT;
                return Err(bad(format!("its format is {format}; this version reads {newest}")));
            }
            None => return Err(bad("its `tec_zoo` section has no `format`".into())),
        }
        let config: ModelConfig = serde_json::from_value(section.clone()).map_err(|error| bad(error.to_string()))?;
        config.vit.validate().map_err(bad)?;
        Ok(config)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the directory is in the common format; that of a training's checkpoint is not, though it holds the model.
    pub fn has_files(&self) -> bool {
        self.has_files
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Gives the memory of what was read of every file back to the system.
    pub fn release(&self) {
        for weights in [Some(&self.model), self.adapters.as_ref(), self.neck.as_ref()].into_iter().flatten() {
            weights.release();
        }
    }

    /// The backbone's file.
    pub fn model(&self) -> &Weights {
        &self.model
    }

    /// The adapters' file.
    pub fn adapters(&self) -> Option<&Weights> {
        self.adapters.as_ref()
    }

    /// The neck's file.
    pub fn neck(&self) -> Option<&Weights> {
        self.neck.as_ref()
    }

    /// A parameter of the backbone, of the adapters or of the neck; their names never collide.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let beside = || self.adapters.iter().chain(&self.neck).find_map(|weights| weights.get(name));
        self.model.get(name).or_else(beside)
    }
}
