//! Reading a container's header, whatever it is, and what a person wants to know of it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;

use super::error::shown;
use super::pickle::{self, Arena, Id};
use super::source::Source;
use super::torch::{self, Storages};
use super::{Checkpoint, CheckpointError, ContainerKind, TensorEntry, globals, legacy, safetensors, tar, zip};
use crate::looks::looks;

/// Warnings of one kind.
const MAX_TOLD: usize = 16;

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

/// Reads the header of a file.
pub(super) fn file(source: Source) -> Result<Survey, CheckpointError> {
    let mut survey = Survey::new(ContainerKind::Sharded);
    survey.checkpoint.kind = survey.add(source)?;
    survey.finish()
}

/// Reads the headers of the shards of one checkpoint.
pub(super) fn shards(paths: &[PathBuf]) -> Result<Survey, CheckpointError> {
    let mut survey = Survey::new(ContainerKind::Sharded);
    for path in paths {
        Source::map(path).and_then(|source| survey.add(source)).map_err(|error| error.in_file(path))?;
    }
    survey.finish()
}

impl Survey {
    fn new(kind: ContainerKind) -> Self {
        Self {
            checkpoint: Checkpoint { kind, sources: Vec::new(), tensors: Vec::new(), checksums: HashMap::new() },
            globals: Vec::new(),
            leaves: Vec::new(),
            protocol: None,
            warnings: Vec::new(),
        }
    }

    fn add(&mut self, source: Source) -> Result<ContainerKind, CheckpointError> {
        let kind = self.read(source.bytes(), self.checkpoint.sources.len())?;
        self.checkpoint.sources.push(source);
        Ok(kind)
    }

    fn finish(mut self) -> Result<Self, CheckpointError> {
        self.once()?;
        self.shared();
        Ok(self)
    }

    /// Reads the header of the file that is number `index`.
    fn read(&mut self, bytes: &[u8], index: usize) -> Result<ContainerKind, CheckpointError> {
        if bytes.starts_with(zip::LOCAL) || bytes.starts_with(zip::END) {
            self.torch_zip(bytes, index)?;
            return Ok(ContainerKind::TorchZip);
        }
        if let Some(magic) = legacy::magic(bytes) {
            let file = legacy::read(bytes, magic)?;
            self.pickled(&file.arena, file.root, index, &Storages::Keyed(&file.storages))?;
            if file.end < bytes.len() {
                self.warnings.push(format!("{} bytes follow the last storage", bytes.len() - file.end));
            }
            return Ok(ContainerKind::TorchLegacy);
        }
        if safetensors::is_safetensors(bytes) {
            self.checkpoint.tensors.extend(safetensors::read(bytes, index)?);
            return Ok(ContainerKind::Safetensors);
        }
        if tar::is_tar(bytes) {
            let file = tar::read(bytes, index)?;
            self.pickled(&file.arena, file.root, index, &Storages::Tensors(&file.tensors))?;
            return Ok(ContainerKind::TorchTar);
        }
        Err(unrecognised(bytes))
    }

    fn torch_zip(&mut self, bytes: &[u8], index: usize) -> Result<(), CheckpointError> {
        let archive = zip::Archive::read(bytes)?;
        let zip = |reason: &str| CheckpointError::Zip { reason: reason.to_owned() };
        let mut pickles = archive.names().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let Some(name) = pickles.next() else { return Err(zip("it has no data.pkl: not a torch checkpoint")) };
        if pickles.next().is_some() {
            return Err(zip("it has more than one data.pkl"));
        }
        let folder = name.strip_suffix("data.pkl").unwrap_or_default();
        if archive.get(&format!("{folder}constants.pkl")).is_some() {
            return Err(CheckpointError::TorchScript);
        }
        match archive.get(&format!("{folder}byteorder")).map(|range| &bytes[range]) {
            None | Some(b"little") => {}
            Some(b"big") => return Err(CheckpointError::BigEndian),
            Some(_) => return Err(zip("its byte order is neither `little` nor `big`")),
        }
        let mut arena = Arena::default();
        let (root, _) = pickle::read(&mut arena, archive.checked(name, bytes)?)?;
        let storages = archive.below(&format!("{folder}data/"));
        let checksums = archive.checksums().map(|(range, checksum)| ((index, range.start), (range, checksum)));
        self.checkpoint.checksums.extend(checksums);
        self.pickled(&arena, root, index, &Storages::Keyed(&storages))
    }

    /// Takes over what a pickled object holds.
    fn pickled(
        &mut self,
        arena: &Arena,
        root: Id,
        index: usize,
        storages: &Storages<'_>,
    ) -> Result<(), CheckpointError> {
        let found = torch::all_globals(arena);
        let walked = torch::walk(arena, root, index, storages).map_err(|error| {
            // What should not be there says more than what it broke.
            let names: Vec<String> =
                found.keys().filter(|name| !globals::is_known(name)).map(|name| (*name).to_owned()).collect();
            if names.is_empty() { error } else { CheckpointError::UnknownGlobals { names } }
        })?;
        let known: HashMap<String, usize> =
            self.globals.iter().enumerate().map(|(at, global)| (global.name.clone(), at)).collect();
        for (name, count) in found {
            match known.get(name) {
                Some(&at) => self.globals[at].count += count,
                None => {
                    self.globals.push(GlobalUse { name: name.to_owned(), count, known: globals::is_known(name) });
                }
            }
        }
        self.protocol = self.protocol.max(Some(arena.protocol));
        self.checkpoint.tensors.extend(walked.tensors);
        self.leaves.extend(walked.leaves.into_iter().map(|(path, value)| Leaf { path, value }));
        Ok(())
    }

    /// Refuses two tensors at one path: which of them is meant?
    fn once(&self) -> Result<(), CheckpointError> {
        let mut seen = HashSet::with_capacity(self.checkpoint.tensors.len());
        match self.checkpoint.tensors.iter().find(|tensor| !seen.insert(&tensor.path)) {
            Some(twice) => Err(CheckpointError::tensor(&twice.path, "it is there twice")),
            None => Ok(()),
        }
    }

    /// Tells of tensors that share memory: they are listed, and converted, as if each had its own.
    fn shared(&mut self) {
        let mut places: Vec<(usize, usize, &TensorEntry)> = Vec::new();
        for tensor in &self.checkpoint.tensors {
            if !tensor.place.storage.is_empty() {
                places.push((tensor.place.source, tensor.place.storage.start + tensor.place.offset, tensor));
            }
        }
        places.sort_by_key(|&(source, start, _)| (source, start));
        let same = places.windows(2).filter(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1));
        let tell = |pair: &[(usize, usize, &TensorEntry)]| {
            let [one, other] = [0, 1].map(|at| shown(&pair[at].2.path.join(".")));
            format!("`{one}` and `{other}` start at the same byte: shared memory, listed twice")
        };
        let told: Vec<String> = same.take(MAX_TOLD).map(tell).collect();
        self.warnings.extend(told);
    }
}

fn unrecognised(bytes: &[u8]) -> CheckpointError {
    let looks = match bytes {
        [0x80, 0..=5, ..] => Some("a pickle that torch.save did not write"),
        bytes => looks(bytes),
    };
    let start = bytes.iter().take(16).map(|byte| byte.escape_ascii().to_string()).collect();
    CheckpointError::Unrecognised { looks, start }
}
