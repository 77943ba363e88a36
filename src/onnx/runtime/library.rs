//! Where ONNX Runtime's shared library lies on this machine.
//!
//! Installed as a system package it is in a library folder; far more often it is inside a Python wheel, under a name
//! with a version that no loader finds by itself. A library is code: none is taken from the folder one happens to work in.

use std::path::{Path, PathBuf};

use super::{RuntimeError, RuntimeOptions};

/// Folders a system package or a tarball is usually unpacked to.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
    "/opt/homebrew/opt/onnxruntime/lib",
];

/// Prefixes Python installs packages under.
const PYTHON_PREFIXES: [&str; 3] = ["/usr/local", "/usr", "/opt/homebrew"];

/// Finds the library: the one given, else one in the environments given, else one in the usual folders.
///
/// # Errors
/// When there is none, with how to get one.
pub fn find_ort_library(options: &RuntimeOptions) -> Result<PathBuf, RuntimeError> {
    if let Some(library) = &options.ort_library {
        // Loaded as it stands: when it is wrong, the loader's reason names it.
        return Ok(library.clone());
    }
    let mut folders = Vec::new();
    // An empty path would be the folder one works in.
    for environment in options.environments.iter().filter(|path| !path.as_os_str().is_empty()) {
        wheels(environment, &mut folders);
        // conda's own package.
        folders.push(environment.join("lib"));
    }
    folders.extend(LIBRARY_FOLDERS.iter().map(PathBuf::from));
    let home = std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".local"));
    for prefix in home.into_iter().chain(PYTHON_PREFIXES.iter().map(PathBuf::from)) {
        wheels(&prefix, &mut folders);
    }
    folders.iter().find_map(|folder| library_in(folder)).ok_or(RuntimeError::OrtNotFound { searched: folders.len() })
}

/// `onnxruntime/capi` of every Python under `prefix`.
fn wheels(prefix: &Path, folders: &mut Vec<PathBuf>) {
    let capi = Path::new("onnxruntime/capi");
    for lib in ["lib", "lib64"] {
        let mut pythons: Vec<PathBuf> = entries(&prefix.join(lib))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
            .collect();
        pythons.sort();
        for python in pythons.iter().rev() {
            folders.push(python.join("site-packages").join(capi));
            folders.push(python.join("dist-packages").join(capi));
        }
    }
    folders.push(prefix.join("Lib/site-packages").join(capi));
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The library in a folder; with several versions, the last by name.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let is_library = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let shared = |suffix: &str| name == format!("libonnxruntime{suffix}");
        shared(".so")
            || shared(".dylib")
            || name == "onnxruntime.dll"
            || name
                .strip_prefix("libonnxruntime.so.")
                .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
            || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
    };
    entries(folder).filter(is_library).filter(|path| path.is_file()).max()
}
