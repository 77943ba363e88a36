//! Reading a container's header, whatever it is, and what a person wants to know of it.

use serde::Serialize;

use super::pickle::{self, Arena};
use super::source::Source;
use super::torch::{self, Storages, Walked};
use super::{Checkpoint, CheckpointError, ContainerKind, TensorEntry, legacy, tar, zip};

/// What a checkpoint's header says.
#[derive(Debug)]
pub struct Survey {
    /// Its tensors, readable even where the pickle names something unknown.
    pub checkpoint: Checkpoint,
    /// Names in the pickle.
    pub globals: Vec<GlobalUse>,
    /// Values near the root that are no tensors: epoch, arguments, versions.
    pub leaves: Vec<Leaf>,
    /// Newest pickle protocol used; absent for safetensors.
    pub protocol: Option<u8>,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
}

/// A name in a pickle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GlobalUse {
    /// `module.name`.
    pub name: String,
    /// How often it stands there.
    pub count: usize,
    /// Whether it is on the list of inert names.
    pub known: bool,
}

/// A value that is no tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leaf {
    /// Keys from the root.
    pub path: Vec<String>,
    /// As Python would print it, shortened.
    pub value: String,
}

impl Survey {
    /// The checkpoint, if its pickle names nothing unknown.
    pub(super) fn trusted(self) -> Result<Checkpoint, CheckpointError> {
        let names: Vec<String> =
            self.globals.iter().filter(|global| !global.known).map(|global| global.name.clone()).collect();
        if names.is_empty() { Ok(self.checkpoint) } else { Err(CheckpointError::UnknownGlobals { names }) }
    }
}

/// Reads the headers of all `sources`; several are the shards of one checkpoint.
pub(super) fn read(sources: Vec<Source>) -> Result<Survey, CheckpointError> {
    let mut survey = Survey {
        checkpoint: Checkpoint { kind: ContainerKind::Sharded, sources: Vec::new(), tensors: Vec::new() },
        globals: Vec::new(),
        leaves: Vec::new(),
        protocol: None,
        warnings: Vec::new(),
    };
    let single = sources.len() == 1;
    for (index, source) in sources.iter().enumerate() {
        let kind = one(source.bytes(), index, &mut survey)?;
        if single {
            survey.checkpoint.kind = kind;
        }
    }
    survey.checkpoint.sources = sources;
    shared(&mut survey);
    Ok(survey)
}

fn one(bytes: &[u8], index: usize, survey: &mut Survey) -> Result<ContainerKind, CheckpointError> {
    if bytes.starts_with(zip::LOCAL) || bytes.starts_with(b"PK\x05\x06") {
        torch_zip(bytes, index, survey)?;
        return Ok(ContainerKind::TorchZip);
    }
    if bytes.starts_with(legacy::MAGIC) {
        let file = legacy::read(bytes)?;
        let find = |key: &str| file.storages.get(key).cloned();
        let walked = torch::walk(&file.arena, file.root, index, &Storages::Keyed(&find))?;
        if file.end < bytes.len() {
            survey.warnings.push(format!("{} bytes follow the last storage", bytes.len() - file.end));
        }
        survey.add(&file.arena, walked);
        return Ok(ContainerKind::TorchLegacy);
    }
    if tar::is_tar(bytes) {
        let file = tar::read(bytes, index)?;
        let walked = torch::walk(&file.arena, file.root, index, &Storages::Tensors(&file.tensors))?;
        survey.add(&file.arena, walked);
        return Ok(ContainerKind::TorchTar);
    }
    // A safetensors file starts with its header's length and the header's brace.
    if bytes.get(8) == Some(&b'{') {
        survey.checkpoint.tensors.extend(super::safetensors(bytes, index)?);
        return Ok(ContainerKind::Safetensors);
    }
    let start = bytes.iter().take(16).map(|byte| byte.escape_ascii().to_string()).collect::<String>();
    Err(CheckpointError::Unrecognised { start: format!("`{start}`") })
}

fn torch_zip(bytes: &[u8], index: usize, survey: &mut Survey) -> Result<(), CheckpointError> {
    let archive = zip::Archive::read(bytes)?;
    let zip = |reason: &str| CheckpointError::Zip { reason: reason.to_owned() };
    let mut pickles = archive.names().iter().filter(|name| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(name) = pickles.next() else { return Err(zip("it has no data.pkl: not a torch checkpoint")) };
    if pickles.next().is_some() {
        return Err(zip("it has more than one data.pkl"));
    }
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    if archive.get(&format!("{folder}constants.pkl")).is_some() {
        return Err(CheckpointError::TorchScript);
    }
    if archive.get(&format!("{folder}byteorder")).is_some_and(|range| &bytes[range] != b"little") {
        return Err(CheckpointError::BigEndian);
    }
    let range = archive.get(name).ok_or_else(|| zip("it has no data.pkl"))?;
    let mut arena = Arena::default();
    let (root, _) = pickle::read(&mut arena, &bytes[range])?;
    let find = |key: &str| archive.get(&format!("{folder}data/{key}"));
    let walked = torch::walk(&arena, root, index, &Storages::Keyed(&find))?;
    survey.add(&arena, walked);
    Ok(())
}

impl Survey {
    fn add(&mut self, arena: &Arena, walked: Walked) {
        let unknown = torch::unknown_globals(arena);
        for (name, count) in torch::all_globals(arena) {
            let known = !unknown.contains(&name);
            match self.globals.iter_mut().find(|global| global.name == name) {
                Some(global) => global.count += count,
                None => self.globals.push(GlobalUse { name, count, known }),
            }
        }
        self.protocol = self.protocol.max(Some(arena.protocol));
        self.checkpoint.tensors.extend(walked.tensors);
        self.leaves.extend(walked.leaves.into_iter().map(|(path, value)| Leaf { path, value }));
    }
}

/// Tells of tensors that share memory: they are listed, and converted, as if each had its own.
fn shared(survey: &mut Survey) {
    let mut places: Vec<(usize, usize, &TensorEntry)> = Vec::new();
    for tensor in &survey.checkpoint.tensors {
        if !tensor.place.storage.is_empty() {
            places.push((tensor.place.source, tensor.place.storage.start + tensor.place.offset, tensor));
        }
    }
    places.sort_by_key(|&(source, start, _)| (source, start));
    let mut told = Vec::new();
    for pair in places.windows(2) {
        if (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1) && told.len() < 16 {
            told.push(format!("`{}` and `{}` are the same memory", pair[0].2.path.join("."), pair[1].2.path.join(".")));
        }
    }
    survey.warnings.extend(told);
}
