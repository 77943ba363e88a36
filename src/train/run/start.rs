//! Where a run starts: at its newest whole checkpoint, if it is still the same run; at the beginning, if it has none.

use std::fs;
use std::path::Path;

use super::checkpoint::{self, Belongs, Checkpoint};
use super::error::RunError;
use super::folder::{EarlierData, Folder, RunFile, Started, started_recipe, started_run};
use super::images::Known;
use super::trainer::Reporter;
use super::{News, Pretraining};
use crate::data::DataDigest;
use crate::train::Recipe;
use crate::train::distributed::World;

/// The folder, for rank 0, and the checkpoint every process goes on from, which rank 0 chooses.
pub(super) fn continued(
    settings: &Pretraining,
    recipe: &Recipe,
    about: &mut RunFile,
    world: &World,
    report: &mut Reporter<'_>,
) -> Result<(Option<Folder>, Option<Checkpoint>), RunError> {
    const NONE: u64 = u64::MAX;
    let (mut folder, mut from) = (None, None);
    if world.rank() == 0 {
        let claimed = Folder::claim(&settings.out, settings.resume)?;
        let allowed = settings.allow_other_data;
        let left = refuse_another(&claimed, recipe, about, allowed, report)?;
        let mut damaged = |path: &Path, reason: &str| report.say(News::Damaged { path, reason });
        let (newest, useless) = checkpoint::newest(&claimed.checkpoints(), &mut damaged)?;
        if let Some(checkpoint) = newest {
            refuse_another_checkpoint(&checkpoint.belongs, &claimed, recipe, about, allowed)?;
            from = Some(checkpoint);
        }
        // They will be written again.
        for path in useless {
            fs::remove_dir_all(&path).map_err(RunError::io("write", &path))?;
        }
        // Data is only changed by updates on it.
        let until = from.as_ref().map_or(0, |from| from.belongs.step);
        about.earlier_data.extend(left.map(|left| EarlierData { until, ..left }).filter(|left| left.until > 0));
        folder = Some(claimed);
    }
    let mut words = [from.as_ref().map_or(NONE, |from| from.belongs.step), about.images].map(u64::to_le_bytes).concat();
    world.broadcast(&mut words)?;
    let word = |at: usize| words[at * 8..].first_chunk().map_or(NONE, |word| u64::from_le_bytes(*word));
    if word(1) != about.images {
        let (was, is) = (format!("{} images", word(1)), format!("{} in rank {}", about.images, world.rank()));
        return Err(RunError::Other { path: settings.out.display().to_string(), what: "data", was, is });
    }
    let id = about.digest.as_ref().map(DataDigest::id).unwrap_or_default();
    let mut first = id.clone().into_bytes();
    world.broadcast(&mut first)?;
    if first != id.as_bytes() {
        let (was, is) = (String::from_utf8_lossy(&first).into_owned(), format!("{id} in rank {}", world.rank()));
        return Err(RunError::Other { path: settings.out.display().to_string(), what: "data", was, is });
    }
    if world.rank() != 0 && word(0) != NONE {
        let path = checkpoint::path(&settings.out.join(Folder::CHECKPOINTS), word(0));
        let invalid = |reason| RunError::Invalid { path: path.display().to_string(), reason };
        from = Some(Checkpoint::open(&path).map_err(invalid)?);
    }
    Ok((folder, from))
}

/// What the files beside the checkpoints say. Returns the data they were started with, where going on with other data is
/// allowed and this is other data.
fn refuse_another(
    folder: &Folder,
    recipe: &Recipe,
    about: &mut RunFile,
    allowed: bool,
    report: &mut Reporter<'_>,
) -> Result<Option<EarlierData>, RunError> {
    if let Some(was) = started_recipe(folder.path())? {
        refuse_recipe(folder, &was, recipe)?;
    }
    let Some(Started { run: was, damaged }) = started_run(folder.path())? else { return Ok(None) };
    if let Some(reason) = damaged {
        report.say(News::DamagedRecord { path: &folder.file(Folder::RUN), reason: &reason });
    }
    let sha256 = |run: &RunFile| run.base.as_ref().map(|base| base.sha256.clone());
    refuse_base(folder, sha256(&was), sha256(about))?;
    let other = refuse_data(folder, was.known(), about, allowed)?;
    if was.digest.is_none() {
        report.say(News::UnknownData { images: was.images });
    }
    about.earlier_data = was.earlier_data;
    Ok(other.then_some(EarlierData { until: 0, data: was.data, images: was.images, digest: was.digest }))
}

fn refuse_recipe(folder: &Folder, was: &Recipe, is: &Recipe) -> Result<(), RunError> {
    match was.differences(is) {
        differences if differences.is_empty() => Ok(()),
        differences => Err(RunError::OtherRecipe { path: folder.path().display().to_string(), differences }),
    }
}

fn refuse_base(folder: &Folder, was: Option<String>, is: Option<String>) -> Result<(), RunError> {
    if was == is {
        return Ok(());
    }
    let shown = |sha256: Option<String>| sha256.map_or("none".to_owned(), |sha256| format!("sha256 {sha256}"));
    Err(RunError::Other { path: folder.path().display().to_string(), what: "base", was: shown(was), is: shown(is) })
}

/// Whether the data is other data, and that is allowed.
fn refuse_data(folder: &Folder, was: Known<'_>, is: &RunFile, allowed: bool) -> Result<bool, RunError> {
    match was.difference(is) {
        Some(difference) if !allowed => Err(was.refused(folder.path(), difference, is)),
        difference => Ok(difference.is_some()),
    }
}

/// What a checkpoint itself says: the files beside it may have been edited.
fn refuse_another_checkpoint(
    belongs: &Belongs,
    folder: &Folder,
    recipe: &Recipe,
    about: &RunFile,
    allowed: bool,
) -> Result<(), RunError> {
    refuse_recipe(folder, &Recipe::parse("of the checkpoint", &belongs.recipe, &[])?, recipe)?;
    refuse_base(folder, belongs.base.clone(), about.base.as_ref().map(|base| base.sha256.clone()))?;
    let digest = belongs.run.as_ref().and_then(|run| run.digest.as_ref());
    let known = Known { images: belongs.images, digest };
    // The run may have gone on by leave, and ended before its next checkpoint.
    refuse_data(folder, known, about, allowed || about.left(known)).map(drop)
}
