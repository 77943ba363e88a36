//! The loop.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use candle_core::Device;

use super::base::{keep, kept_base};
use super::begin::{Beginning, agree};
use super::checkpoint::{Belongs, Checkpoint};
use super::desk::Desk;
use super::disk::Room;
use super::dump;
use super::error::RunError;
use super::folder::{BaseFile, Folder, RunFile};
use super::images::Images;
use super::model::{self, CheckpointModel};
use super::result;
use super::start::continued;
use super::summary::Summary;
use super::watchdog::{Pulse, Stall, watch};
use super::{Base, End, News, Pretraining};
use crate::data::{Augment, DataError, Dataset, Loader, LoaderSettings, Share, TrainBatch};
use crate::model::{ModelConfig, VitConfig};
use crate::train::distributed::World;
use crate::train::{
    Metrics, MicroBatch, Phase, Recipe, RecipeError, Schedule, Step, StepError, StepRecord, StepReport,
};

/// Names of an update's images an error shows; the dump has all of them.
const SHOWN: usize = 4;

/// How long a wait lasts before the listener is asked whether to go on waiting.
const LOOK: Duration = Duration::from_millis(200);

/// Runs, or continues, a pretraining to its end.
///
/// `hear` is told what happens, at every block of every pass at the latest, on whatever thread it happens. Where it breaks
/// off, the run drops what it has of an update, saves, and returns [`End::Stopped`]; of several processes all do so, at the
/// end of the micro-batch they are at (on GPUs: of the update).
///
/// `stalled` is told, from a thread of its own, when the run stands still (`run.watchdog_minutes`). Nothing ends by itself then;
/// the newest checkpoint is whole.
///
/// # Errors
/// [`RunError`]; nothing is half-written then, and the newest checkpoint is whole. One of several processes must then end
/// the others ([`World::abort`]): they wait for it.
pub fn pretrain(
    settings: &Pretraining,
    world: &World,
    hear: &mut (dyn FnMut(News<'_>) -> ControlFlow<()> + Send),
    stalled: &(dyn Fn(&Stall) + Sync),
) -> Result<End, RunError> {
    let pulse = Pulse::new();
    let mut report = Reporter { hear, pulse: &pulse, alone: world.size() == 1, asked: false };
    let images =
        Images::find(&settings.data, &settings.out, settings.resume, &mut |event| (report.hear)(News::Scan(event)))?;
    let (recipe, schedule) = settled(settings, images.dataset.len(), world)?;
    let trainer = Trainer::new(settings, &recipe, schedule, images, world, &mut report)?;
    let Some(least) = recipe.run.watchdog() else { return trainer.run_to_end(&mut report) };
    let (pulse, loader) = (&pulse, trainer.loader.activity());
    std::thread::scope(|scope| {
        // Hung up, however the run ends.
        let (_running, ended) = mpsc::channel();
        scope.spawn(move || watch(pulse, least, &loader, &ended, stalled));
        trainer.run_to_end(&mut report)
    })
}

/// The recipe with k, τ and the student's shape, and the schedule; refused, with every reason at once, where something is
/// lacking or does not fit the data or the processes.
fn settled(settings: &Pretraining, images: u64, world: &World) -> Result<(Recipe, Schedule), RunError> {
    let (mut recipe, mut problems) = (settings.recipe.clone(), Vec::new());
    match &settings.base {
        Some(base) => recipe = recipe.with_student_of(&base.model.config().vit),
        None if recipe.needs_base() => problems.push(RunError::NoBase),
        None => {}
    }
    match recipe.resolved(settings.base.as_ref().and_then(|base| base.tec)) {
        Some(resolved) => recipe = resolved,
        // Without a base it is not k and tau that are missed first.
        None if settings.base.is_none() => {}
        None => problems.push(RunError::NoTecSettings),
    }
    if let Err(reason) = recipe.validate() {
        problems.push(RecipeError::Invalid { recipe: recipe.title.clone(), reason }.into());
    }
    let batch = recipe.optimizer.batch;
    let schedule = Schedule::new(&recipe, images);
    if schedule.is_none() {
        problems.push(RunError::TooFew { data: settings.data.display().to_string(), images, batch });
    }
    let (micro_batch, processes) = (micro_batch(&recipe, world), world.size());
    if !batch.is_multiple_of(micro_batch * processes) {
        problems.push(RunError::Shares { batch, micro_batch, processes });
    }
    match (schedule, problems.len()) {
        (Some(schedule), 0) => Ok((recipe, schedule)),
        (_, 1) => Err(problems.remove(0)),
        _ => Err(RunError::Several { problems }),
    }
}

/// Images of one micro-batch.
fn micro_batch(recipe: &Recipe, world: &World) -> usize {
    recipe.optimizer.micro_batch.min(recipe.optimizer.batch / world.size()).max(1)
}

/// Says what happens, to the listener and to the watchdog.
pub(super) struct Reporter<'r> {
    hear: &'r mut (dyn FnMut(News<'_>) -> ControlFlow<()> + Send),
    pulse: &'r Pulse,
    /// Whether there are no other processes.
    alone: bool,
    /// Whether the listener broke off.
    asked: bool,
}

impl Reporter<'_> {
    pub(super) fn say(&mut self, news: News<'_>) {
        self.pulse.telling(true);
        self.asked |= (self.hear)(news).is_break();
        self.pulse.telling(false);
    }

    fn enter(&mut self, phase: Phase) {
        self.pulse.enter(phase);
        self.say(News::Working(phase));
    }

    /// Breaks where the run is to stop at once.
    fn working(&mut self, phase: Phase) -> ControlFlow<()> {
        self.enter(phase);
        if self.must_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Of several processes, none may stop alone: the others would wait for it.
    fn must_stop(&self) -> bool {
        self.asked && self.alone
    }
}

struct Trainer<'a> {
    recipe: &'a Recipe,
    /// What the run's model is.
    model: ModelConfig,
    about: RunFile,
    recipe_text: String,
    out: &'a Path,
    world: &'a World,
    /// Rank 0's.
    desk: Option<Desk>,
    schedule: Schedule,
    micro_batches: usize,
    dataset: Arc<Dataset>,
    loading: LoaderSettings,
    loader: Loader,
    step: Step<'a>,
    device: &'a Device,
    /// Updates done.
    done: u64,
    /// Broken images before this process started, and up to now, over all processes.
    skipped_before: u64,
    skipped: u64,
    /// Those of this process that were told.
    told: usize,
    /// Since this process started.
    trained: Tally,
    /// What is known of the updates of the run's last epoch.
    last_epoch: Vec<StepRecord>,
}

#[derive(Default)]
struct Tally {
    steps: u64,
    images: u64,
    time: Duration,
    waited: Duration,
}

/// What an update was made from.
#[derive(Default)]
struct Made {
    samples: Vec<Vec<u64>>,
    names: Vec<Vec<String>>,
    epoch: u64,
    waited: Duration,
}

/// An update, and how it ended.
type Attempt = (Made, Result<StepReport, StepError>);

impl<'a> Trainer<'a> {
    fn new(
        settings: &'a Pretraining,
        recipe: &'a Recipe,
        schedule: Schedule,
        Images { dataset, digest }: Images,
        world: &'a World,
        report: &mut Reporter<'_>,
    ) -> Result<Self, RunError> {
        let base = settings.base.as_ref();
        let student = recipe.student.vit().ok_or(RunError::NoBase)?;
        let images = dataset.len();
        let mut about = RunFile {
            tool: concat!("tec-zoo ", env!("CARGO_PKG_VERSION")).to_owned(),
            revision: option_env!("TEC_ZOO_REVISION").map(str::to_owned),
            seed: recipe.run.seed,
            base: base.map(|base| BaseFile::of(base, &settings.out)).transpose()?,
            data: std::path::absolute(&settings.data).map_err(RunError::io("read", &settings.data))?,
            images,
            digest: Some(digest),
            earlier_data: Vec::new(),
            branch: None,
        };
        let (folder, from) = continued(settings, recipe, &mut about, world, report)?;
        let mut step = Step::new(base.map(|base| &base.model), student, recipe.step_settings(), &settings.device)?;
        let (broken, base_sha256) = (dataset.damaged().len() as u64, about.base.as_ref().map(|base| &*base.sha256));
        let beginning = Beginning::of(settings, recipe, &schedule, from, &mut step, broken, base_sha256)?;
        let Beginning { done, skipped, saved, branch, branched, model } = beginning;
        about.branch = branch;
        agree(world, &settings.out, &about)?;

        let batch = micro_batch(recipe, world);
        let micro_batches = recipe.optimizer.batch / world.size() / batch;
        let share = Share { rank: world.rank() as u64, world: world.size() as u64 };
        let start = schedule.position(done, micro_batches as u64);
        let loading = LoaderSettings {
            batches: Some(schedule.steps_per_epoch() * micro_batches as u64),
            ..loading(recipe, student, base, batch, share)
        };
        let loader = Loader::new(dataset.clone(), loading.clone(), start)?;
        let path = saved.as_ref().map(|(_, path)| path.clone());
        let unsaved = saved.is_none();
        report.say(News::Started { done, steps: schedule.steps(), images, from: path.as_deref() });
        if let (Some(from), Some((their_epoch, afresh))) = (&about.branch, &branched) {
            let (epoch, lr) = (schedule.epoch(done), schedule.lr(done));
            report.say(News::Branched { from, their_epoch: *their_epoch, epoch, lr, afresh });
        }
        let (mut desk, mut last_epoch) = (None, Vec::new());
        if let Some(folder) = folder {
            let room = Room::of(&folder, &recipe.run, &step, [done, schedule.steps()], kept_base(base))?;
            report.say(News::Disk(room));
            room.suffices(&folder)?;
            let (opened, kept) = Desk::open(folder, recipe, &about, done, saved, now())?;
            dataset.keep(&settings.data, &opened.folder.file(Folder::SCAN))?;
            keep(base, &opened.folder)?;
            desk = Some(opened);
            let updates = Metrics::missing(&kept, about.branch.as_ref().map_or(0, |branch| branch.start)..done);
            if !updates.is_empty() {
                report.say(News::Missing { updates: &updates });
            }
            last_epoch = kept;
            last_epoch.retain(|record| schedule.is_last_epoch(record.step));
        }
        let mut trainer = Self {
            recipe,
            model,
            about,
            recipe_text: recipe.to_text()?,
            out: &settings.out,
            world,
            desk,
            schedule,
            micro_batches,
            dataset,
            loading,
            loader,
            step,
            device: &settings.device,
            done,
            skipped_before: skipped,
            skipped,
            told: 0,
            trained: Tally::default(),
            last_epoch,
        };
        if branched.is_some() || (done > 0 && unsaved) {
            // From here on a parent may go.
            trainer.save(report)?;
        }
        Ok(trainer)
    }

    fn run_to_end(mut self, report: &mut Reporter<'_>) -> Result<End, RunError> {
        let ended = self.run(report);
        if let Err(RunError::Data(_)) = ended {
            // The weights are good, whatever became of the images. Should this fail too, the first reason is the one to tell.
            let saved = self.save(report);
            drop(saved);
        }
        if !ended? {
            return Ok(End::Stopped { step: self.done, steps: self.schedule.steps() });
        }
        report.enter(Phase::Finishing);
        Ok(End::Finished(self.finish()?.map(Box::new)))
    }

    /// Makes the updates that are left; false when asked to stop before the last.
    fn run(&mut self, report: &mut Reporter<'_>) -> Result<bool, RunError> {
        let steps = self.schedule.steps();
        while self.done < steps {
            let started = Instant::now();
            let lr = self.schedule.lr(self.done);
            let Some((made, outcome)) = self.update(lr, report)? else {
                self.save(report)?;
                return Ok(false);
            };
            let outcome = match outcome {
                Err(StepError::NonFinite { term, value, step }) => return Err(self.dump(made, lr, term, value, step)),
                outcome => outcome?,
            };
            // What the processes must agree on: whether any was asked to stop, and counts of all.
            let mut shared = [f64::from(report.asked), self.loader.broken().len() as f64];
            self.world.sum(&mut shared)?;
            self.skipped = self.skipped_before + shared[1] as u64;

            report.enter(Phase::Recording);
            let record = self.record(&outcome, lr, started, made.waited)?;
            for broken in &self.loader.broken()[self.told..] {
                report.say(News::Broken(broken));
            }
            self.told = self.loader.broken().len();
            report.say(News::Step { record: &record, left: self.left().unwrap_or_default() });
            report.pulse.mark();
            let stop = shared[0] > 0.0 || report.must_stop();
            let due = self.desk.as_ref().is_some_and(|desk| desk.is_due(&self.recipe.run, self.done));
            if stop || due || self.done == steps {
                self.save(report)?;
            }
            if stop && self.done < steps {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the next update, each micro-batch as it is ready; none when asked to stop before it was made.
    fn update(&mut self, lr: f64, report: &mut Reporter<'_>) -> Result<Option<Attempt>, RunError> {
        let (step, of, started) = (self.done + 1, self.micro_batches, Instant::now());
        let (left, updates) = (self.left(), (self.schedule.steps() - self.done) as f64);
        let mut made = Made::default();
        let mut update = self.step.update(of, self.world)?;
        for at in 0..of {
            report.pulse.begin(step, at, of);
            // Between GPUs, asking would make each of them wait for the host.
            if at > 0 && !report.alone && self.device.is_cpu() {
                let mut asked = [f64::from(report.asked)];
                self.world.sum(&mut asked)?;
                if asked[0] > 0.0 {
                    return Ok(None);
                }
            }
            let waiting = Instant::now();
            loop {
                if report.working(Phase::Loading).is_break() {
                    return Ok(None);
                }
                if self.loader.wait(LOOK) {
                    break;
                }
            }
            let Some(batch) = self.loader.next().transpose()? else {
                return Err(RunError::Ended { step });
            };
            made.waited += waiting.elapsed();
            let TrainBatch { position, images, noise, samples, names, .. } = batch;
            let batch = MicroBatch { count: samples.len(), images, noise };
            match update.add(&batch, &mut |phase| report.working(phase)) {
                Err(StepError::Interrupted) => return Ok(None),
                added => added?,
            }
            self.loader.recycle(batch.images, batch.noise);
            made.epoch = position.epoch;
            made.samples.push(samples);
            made.names.push(names);
            let each = report.pulse.end();
            let left = match left {
                Some(left) => left.saturating_sub(started.elapsed()),
                None => seconds(each.as_secs_f64() * (updates * of as f64 - (at + 1) as f64)),
            };
            report.say(News::MicroBatch { step, done: at + 1, of, left });
        }
        match update.finish(lr, &mut |phase| report.working(phase)) {
            Err(StepError::Interrupted) => Ok(None),
            outcome => Ok(Some((made, outcome))),
        }
    }

    /// Counts the update and writes it down.
    fn record(
        &mut self,
        report: &StepReport,
        lr: f64,
        started: Instant,
        waited: Duration,
    ) -> Result<StepRecord, RunError> {
        let batch = self.recipe.optimizer.batch as u64;
        let epoch = self.schedule.epoch(self.done);
        self.done += 1;
        let time = started.elapsed();
        self.trained.steps += 1;
        self.trained.images += batch;
        self.trained.time += time;
        self.trained.waited += waited;
        let record = StepRecord {
            step: self.done,
            epoch,
            lr,
            loss: report.loss,
            feature: report.feature,
            attention: report.attention,
            pixels: report.pixels,
            grad_norm: report.grad_norm,
            images: self.done * batch,
            skipped: self.skipped,
            images_per_second: batch as f64 / time.as_secs_f64(),
            data_wait: waited.as_secs_f64() / time.as_secs_f64(),
            time: now(),
        };
        if let Some(desk) = &mut self.desk {
            desk.record(&record)?;
        }
        if self.schedule.is_last_epoch(record.step) {
            self.last_epoch.push(record.clone());
        }
        Ok(record)
    }

    /// How long the updates that are left will take, by those that this process made.
    fn left(&self) -> Option<Duration> {
        let each = self.trained.time.as_secs_f64() / self.trained.steps as f64;
        (self.trained.steps > 0).then(|| seconds(each * (self.schedule.steps() - self.done) as f64))
    }

    fn belongs(&self) -> Belongs {
        Belongs {
            step: self.done,
            images: self.about.images,
            skipped: self.skipped,
            base: self.about.base.as_ref().map(|base| base.sha256.clone()),
            recipe: self.recipe_text.clone(),
            run: Some(self.about.clone()),
            model: Some(Box::new(self.model.clone())),
        }
    }

    /// Writes a checkpoint, on rank 0.
    fn save(&mut self, report: &mut Reporter<'_>) -> Result<(), RunError> {
        report.enter(Phase::Saving);
        let belongs = self.belongs();
        let Some(desk) = &mut self.desk else { return Ok(()) };
        // Weights that lack the share of a process that is gone must not become a checkpoint.
        self.world.alive()?;
        if let Some(path) = desk.save(&self.recipe.run, belongs, &self.step)? {
            report.say(News::Saved { path });
        }
        report.pulse.mark();
        Ok(())
    }

    /// Leaves everything to repeat the update that failed, and says what failed.
    fn dump(&mut self, made: Made, lr: f64, term: String, value: f64, step: u64) -> RunError {
        // Each process has images of its own.
        let rank = match self.world.rank() {
            0 => String::new(),
            rank => format!("-rank{rank}"),
        };
        let path = self.out.join(format!("nonfinite-step-{step:08}{rank}"));
        let mut names = made.names.iter().flatten();
        let mut images = names.by_ref().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match names.count() {
            0 => {}
            more => images += &format!(" and {more} more"),
        }
        let about = dump::About {
            term: term.clone(),
            lr,
            epoch: made.epoch,
            samples: made.samples,
            names: made.names,
            base: self.about.base.clone(),
        };
        let written = match self.again() {
            Ok(batches) => dump::write(&path, self.belongs(), &self.step, batches, &about),
            Err(error) => return error.into(),
        };
        // All of them stop here, and whoever is first ends the others. A loss of one now is not what to tell.
        let met = self.world.barrier();
        drop(met);
        match written {
            Ok(()) => RunError::NonFinite { term, value, step, images, dump: path },
            Err(source) => RunError::io("write", &path)(source),
        }
    }

    /// The micro-batches of the update under way, loaded once more: they are the same.
    fn again(&self) -> Result<impl Iterator<Item = std::io::Result<MicroBatch>>, DataError> {
        let start = self.schedule.position(self.done, self.micro_batches as u64);
        let loader = Loader::new(self.dataset.clone(), self.loading.clone(), start)?;
        let batch = |batch: Result<TrainBatch, DataError>| {
            let TrainBatch { images, noise, samples, .. } = batch.map_err(std::io::Error::other)?;
            Ok(MicroBatch { count: samples.len(), images, noise })
        };
        Ok(loader.take(self.micro_batches).map(batch))
    }

    /// Writes the model and how it went, on rank 0.
    fn finish(self) -> Result<Option<Summary>, RunError> {
        let Some(desk) = &self.desk else { return Ok(None) };
        let out = desk.folder.model();
        if let Some(newest) = desk.newest() {
            // Of the file, not of memory: what anybody who has the checkpoint can make again.
            let invalid = |reason| RunError::Invalid { path: newest.display().to_string(), reason };
            let checkpoint = Checkpoint::open(newest).map_err(invalid)?;
            let made = CheckpointModel::new(&checkpoint)?;
            model::write(&out, made.model(), Some(made.decoder()))?;
        }
        let mean = |of: fn(&StepRecord) -> Option<f64>| {
            let values: Vec<f64> = self.last_epoch.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let seconds = self.trained.time.as_secs_f64();
        let rate = |amount: f64| if seconds > 0.0 { amount / seconds } else { 0.0 };
        let summary = Summary {
            model: out,
            steps: self.done,
            epochs: self.recipe.optimizer.epochs,
            images: self.done * self.recipe.optimizer.batch as u64,
            skipped: self.skipped,
            loss: mean(|record| Some(record.loss)),
            feature: mean(|record| record.feature),
            attention: mean(|record| record.attention),
            pixels: mean(|record| record.pixels),
            seconds,
            images_per_second: rate(self.trained.images as f64),
            data_wait: rate(self.trained.waited.as_secs_f64()),
            peak_memory: crate::memory::peak(),
        };
        // A finished run that is resumed keeps the summary of those who ran it.
        if self.trained.steps > 0 || !desk.folder.file(Folder::SUMMARY).exists() {
            desk.folder.write_json(Folder::SUMMARY, &summary)?;
        }
        Ok(Some(summary))
    }
}

/// How the samples are made.
fn loading(recipe: &Recipe, student: &VitConfig, base: Option<&Base>, batch: usize, share: Share) -> LoaderSettings {
    let preprocessing = result::preprocessing(base);
    let data = &recipe.data;
    let workers = match data.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    };
    LoaderSettings {
        seed: recipe.run.seed,
        augment: Augment {
            size: student.image_size,
            scale: data.scale,
            ratio: data.ratio,
            flip: data.flip,
            interpolation: preprocessing.interpolation,
            mean: preprocessing.mean,
            std: preprocessing.std,
            exact_decode: data.exact_decode,
        },
        batch,
        noise: student.patches(),
        share,
        epochs: recipe.optimizer.epochs as u64,
        batches: None,
        workers,
        // One being computed, one ready, and as many more as give every worker a sample.
        prefetch: 2 + workers.div_ceil(batch),
        broken_limit: data.broken,
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
