//! The images of a run: found once, known by their digest, and compared with those it was started with.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::error::RunError;
use super::folder::{EarlierData, Folder, RunFile};
use crate::data::{DataDigest, Dataset, ScanEvent};

/// The images, and what they are.
pub(super) struct Images {
    pub(super) dataset: Arc<Dataset>,
    pub(super) digest: DataDigest,
}

impl Images {
    /// Finds the images of `data`; where the run in `out` goes on, without looking at what its kept scan still knows.
    pub(super) fn find(
        data: &Path,
        out: &Path,
        resume: bool,
        hear: &mut dyn FnMut(ScanEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Self, RunError> {
        let dataset = match resume {
            true => Dataset::scan_or_kept(data, &out.join(Folder::SCAN), hear)?,
            false => Dataset::scan(data, hear)?,
        };
        let digest = dataset.digest(hear)?;
        Ok(Self { dataset: Arc::new(dataset), digest })
    }
}

/// What a run's file or a checkpoint says of the images it was trained on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) images: u64,
    pub(super) digest: Option<&'a DataDigest>,
}

impl Known<'_> {
    /// In what they differ from those that are there; none when they are the same, as far as it is known.
    pub(super) fn difference(self, is: &RunFile) -> Option<&'static str> {
        if self.images != is.images {
            return Some("the number of images");
        }
        self.digest.zip(is.digest.as_ref()).and_then(|(was, is)| was.difference(is))
    }

    /// These are not the images the run was started with.
    pub(super) fn refused(self, folder: &Path, difference: &'static str, is: &RunFile) -> RunError {
        let said = |images: u64, digest: Option<&DataDigest>| match digest {
            Some(digest) => format!("{images} images, {}", &digest.id()[..12]),
            None => format!("{images} images"),
        };
        RunError::OtherData {
            path: folder.display().to_string(),
            data: is.data.display().to_string(),
            difference,
            was: said(self.images, self.digest),
            is: said(is.images, is.digest.as_ref()),
        }
    }
}

impl RunFile {
    /// What it says of its images.
    pub(super) fn known(&self) -> Known<'_> {
        Known { images: self.images, digest: self.digest.as_ref() }
    }

    /// Whether the run went on from these images to others, by leave.
    pub(super) fn left(&self, known: Known<'_>) -> bool {
        let same = |earlier: &EarlierData| earlier.images == known.images && earlier.digest.as_ref() == known.digest;
        self.earlier_data.iter().any(same)
    }
}
