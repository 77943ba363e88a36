//! What a replay found.

use std::fmt;

use serde::Serialize;

use super::{Diagnosis, Difference, Origin, Point};

/// How a stage came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Within the tolerance.
    Holds,
    /// Beyond it.
    Diverges,
    /// The record has it and the model cannot make it, though every encoder should.
    Missing,
    /// The record has it and this model was converted without: the adapters of a plain backbone.
    Skipped,
}

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageReport {
    /// Which.
    pub stage: Point,
    /// How it came out.
    pub outcome: Outcome,
    /// How far it is off; absent where the model does not make it.
    pub difference: Option<Difference>,
}

/// A replay, stage by stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Every stage is within the tolerance and no known mistake fits better than the configuration; `None` where no stage of the
    /// record is this model's to make, so that nothing was compared.
    pub holds: Option<bool>,
    /// The relative tolerance used.
    pub tolerance: f64,
    /// Who computed the record.
    pub origin: Origin,
    /// The first stage beyond the tolerance.
    pub first_diverging: Option<Point>,
    /// All stages of the record, in the order of the pass.
    pub stages: Vec<StageReport>,
    /// Why, where it does not hold.
    pub diagnosis: Option<Diagnosis>,
}

impl fmt::Display for Report {
    /// The verdict in a sentence or two, without the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tolerance = self.tolerance;
        match (self.first_diverging, &self.diagnosis) {
            _ if self.holds.is_none() => {
                write!(f, "nothing was compared: the record has no stage that this model makes")?;
            }
            (Some(stage), _) => write!(f, "`{stage}` is the first stage beyond {tolerance:.1e} relative")?,
            (None, Some(_)) => write!(f, "all stages are within {tolerance:.1e} relative, and yet")?,
            (None, None) => write!(f, "all {} stages are within {tolerance:.1e} relative", self.stages.len())?,
        }
        match &self.diagnosis {
            Some(diagnosis) => write!(f, ": {}", diagnosis.sentence),
            None => Ok(()),
        }
    }
}
