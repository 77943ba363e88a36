//! How a run went.

use std::path::PathBuf;

use serde::Serialize;

/// The end of a run; the keys are stable. Speeds are of the process that finished it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The model directory.
    pub model: PathBuf,
    /// Updates.
    pub steps: u64,
    /// Epochs.
    pub epochs: usize,
    /// Images in those updates.
    pub images: u64,
    /// Broken images, each counted once a process.
    pub skipped: u64,
    /// Mean loss of the last epoch.
    pub loss: Option<f64>,
    /// Its feature term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<f64>,
    /// Its attention term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<f64>,
    /// Its pixel term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels: Option<f64>,
    /// Seconds this process trained.
    pub seconds: f64,
    /// Images per second.
    pub images_per_second: f64,
    /// Share of the time spent waiting for data, 0 to 1.
    pub data_wait: f64,
    /// Most memory this process held, in bytes, where the system says.
    pub peak_memory: Option<u64>,
}
