//! The room that a run's checkpoints and its result take on the disk, known before its first update.

use super::checkpoint;
use super::error::RunError;
use super::folder::Folder;
use crate::train::{RunSettings, Step};

/// What headers and records take beside the numbers, at most; metrics and events of an update.
const BESIDE: u64 = 1 << 18;
const LINES: u64 = 1 << 10;

/// What a run still needs of the disk, and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of one checkpoint.
    pub checkpoint: u64,
    /// Checkpoints that are to come on top of those that are there, at most at any time.
    pub checkpoints: u64,
    /// Bytes still needed: for those checkpoints, the result, and the records.
    pub needed: u64,
    /// Bytes that are free; `None` where the system does not say.
    pub free: Option<u64>,
}

impl Room {
    /// What the run in `folder` needs for its updates after `done` of `steps`, with `base` bytes for a base that is kept.
    pub(super) fn of(
        folder: &Folder,
        run: &RunSettings,
        step: &Step<'_>,
        [done, steps]: [u64; 2],
        base: u64,
    ) -> Result<Self, RunError> {
        let tables: usize = step.tables()?.iter().map(|(_, values)| values.len()).sum();
        let numbers = |values: usize| (values as u64).saturating_mul(4).saturating_add(BESIDE);
        let checkpoint = numbers(step.state_len() + tables);
        let result = numbers(step.state_len() / 3 + tables);
        let path = folder.checkpoints();
        let there = checkpoint::list(&path).map_err(RunError::io("read", &path))?;
        let there: Vec<u64> = there.into_iter().map(|(step, _)| step).collect();
        let checkpoints = to_come(run, &there, done, steps);
        let lines = (steps - done.min(steps)).saturating_mul(LINES);
        let needed = checkpoint.saturating_mul(checkpoints).saturating_add(result).saturating_add(lines);
        // Some file systems do not say; there the first write that fails does.
        let free = fs4::available_space(folder.path()).ok();
        Ok(Self { checkpoint, checkpoints, needed: needed.saturating_add(base), free })
    }

    /// Refuses a run that cannot end.
    pub(super) fn suffices(&self, folder: &Folder) -> Result<(), RunError> {
        match self.free {
            Some(free) if free < self.needed => {
                let Self { checkpoint, checkpoints, needed, .. } = *self;
                Err(RunError::NoRoom {
                    path: folder.path().display().to_string(),
                    checkpoint,
                    checkpoints,
                    needed,
                    free,
                })
            }
            _ => Ok(()),
        }
    }
}

/// How many checkpoints more than now, where those of `there` are, there are at once at most until the run ends.
///
/// One is written before the oldest goes; those at multiples of `keep_steps` stay. When a run saves by the clock as well, only
/// the newest few are more, and those are counted.
fn to_come(run: &RunSettings, there: &[u64], done: u64, steps: u64) -> u64 {
    let multiples = |of: u64| (steps / of).saturating_sub(done / of);
    let saves = multiples(run.save_steps) + u64::from(!steps.is_multiple_of(run.save_steps) && done < steps);
    let (stay, staying) = match run.keep_steps {
        0 => (0, 0),
        every => {
            let both = lcm(every, run.save_steps);
            let last = u64::from(steps.is_multiple_of(every) && !steps.is_multiple_of(both) && done < steps);
            (multiples(both) + last, there.iter().filter(|step| step.is_multiple_of(every)).count() as u64)
        }
    };
    let most = (stay + staying).saturating_add(run.keep_last as u64).saturating_add(1);
    most.saturating_sub(there.len() as u64).min(saves)
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

    use super::*;
    use crate::train::Precision;

    fn run(save_steps: u64, keep_last: usize, keep_steps: u64) -> RunSettings {
        let nano = crate::train::Recipe::load("nano", &[]).unwrap();
        RunSettings { save_steps, keep_last, keep_steps, precision: Precision::F32, ..nano.run }
    }

    #[test]
    fn checkpoints_to_come_are_the_newest_few_one_being_written_and_those_that_stay() {
        assert_eq!(to_come(&run(10, 3, 0), &[], 0, 1000), 4);
        assert_eq!(to_come(&run(10, 3, 100), &[], 0, 1000), 14);
        // More are not saved.
        assert_eq!(to_come(&run(10, 3, 10), &[], 0, 50), 5);
        assert_eq!(to_come(&run(10, 3, 0), &[], 0, 15), 2);
        assert_eq!(to_come(&run(1000, 1, 0), &[], 0, 15), 1);
        // The last update is saved wherever it is.
        assert_eq!(to_come(&run(10, 1, 5), &[], 0, 15), 2);
    }

    #[test]
    fn on_resume_only_what_is_still_to_come_is_counted() {
        assert_eq!(to_come(&run(10, 3, 0), &[480, 490, 500], 500, 1000), 1);
        assert_eq!(to_come(&run(10, 3, 100), &[100, 200, 300, 400, 480, 490, 500], 500, 1000), 7);
        assert_eq!(to_come(&run(10, 3, 0), &[980, 990, 1000], 1000, 1000), 0);
    }
}
