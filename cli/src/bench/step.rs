//! `switchyard bench step`: one rank's decode step.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Value, json};
use switchyard_moe::config::ModelConfig;
use switchyard_worker::backend::Numerics;
use switchyard_worker::backend::device::Device;
use switchyard_worker::bench::step::{self, Event, Measured, Options, Outcome, Report, Row};

use super::{read, write_json};
use crate::terminal;

/// Bytes of the copy that tells how fast memory is.
const COPY_BYTES: usize = 1 << 30;

/// Arguments of `switchyard bench step`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to compute: `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// The model: `v4-flash`, `v4-pro`, or a `config.json`.
    #[arg(long, default_value = "v4-flash", value_name = "NAME|FILE")]
    shape: Shape,
    /// Ranks that share the experts, of which one is measured [default: 16 for v4-pro, else 8].
    #[arg(long, value_name = "N")]
    ranks: Option<NonZeroUsize>,
    /// Sequences of the rank.
    #[arg(long, default_value = "1,32,128,256", value_delimiter = ',', value_name = "N,...")]
    batch: Vec<NonZeroUsize>,
    /// Tokens before the one that is decoded.
    #[arg(long, default_value = "4096,65536,1000000", value_delimiter = ',', value_name = "N,...")]
    context: Vec<usize>,
    /// Only the first layers [default: all].
    #[arg(long, value_name = "K")]
    layers: Option<NonZeroUsize>,
    /// How to compute: `exact` or `official`.
    #[arg(long, default_value = "official", value_name = "NAME")]
    numerics: Numerics,
    /// Steps that are timed.
    #[arg(long, default_value = "20", value_name = "N")]
    steps: NonZeroUsize,
    /// Threads, on a processor.
    #[arg(long, default_value = "1", value_name = "N")]
    threads: NonZeroUsize,
    /// Most KV cache, in GiB [default: what the GPU has left; 8 on a processor].
    #[arg(long, value_name = "GIB")]
    cache_gib: Option<u64>,
    /// Folder for compiled GPU kernels [default: compile them anew].
    #[arg(long, value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
    /// Also write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Whose shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    V4Flash,
    V4Pro,
    File(PathBuf),
}

impl FromStr for Shape {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(match name {
            "v4-flash" => Self::V4Flash,
            "v4-pro" => Self::V4Pro,
            file => Self::File(file.into()),
        })
    }
}

/// Runs the command.
///
/// # Errors
/// When the shape cannot be read, the model does not run, or the results cannot be written.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let (options, json_file) = args.resolve()?;
    let config = &options.config;
    terminal::line(format_args!(
        "one of {} ranks, {} layers, {} numerics, on {}",
        options.num_ranks, config.num_hidden_layers, options.numerics, options.device
    ));
    let mut is_first = true;
    let report = step::run(&options, &mut |event| match event {
        Event::Loading(_) => {}
        Event::Row(report, row) => {
            if is_first {
                is_first = false;
                head(report);
            }
            terminal::line(line(report, row));
        }
    })?;
    write_json(json_file.as_ref(), &to_json(&options, &report))
}

fn head(report: &Report) {
    terminal::line(format_args!(
        "{:.2} GB of weights; memory is copied at {:.0} GB/s, read and written",
        report.weight_bytes as f64 / 1e9,
        report.copy_bandwidth / 1e9
    ));
    terminal::line(
        "phases are from steps that wait after each, so they add up to more than a step",
    );
    terminal::line("");
    terminal::line(format_args!(
        "{:>8} {:>6} {:>9} {:>9}  {:>9} {:>8} {:>8} {:>8} {:>7}  {:>8} {:>9} {:>6}  {:>7}",
        "context",
        "batch",
        "ms/step",
        "tokens/s",
        "attention",
        "dispatch",
        "experts",
        "combine",
        "head",
        "GB/step",
        "roofline",
        "share",
        "experts"
    ));
}

fn line(report: &Report, row: &Row) -> String {
    let Row { batch, context, outcome } = row;
    let case = format!("{context:>8} {batch:>6}");
    let measured = match outcome {
        Outcome::Measured(measured) => measured,
        Outcome::NoRoom { cache_bytes } => {
            return format!("{case}  does not fit: {:.1} GB of cache", *cache_bytes as f64 / 1e9);
        }
    };
    let Measured { seconds, phases, traffic, num_hit, .. } = measured;
    let roofline = measured.roofline_seconds(report.copy_bandwidth);
    let ms = |seconds: f64| seconds * 1e3;
    format!(
        "{case} {:>9.3} {:>9.0}  {:>9.3} {:>8.3} {:>8.3} {:>8.3} {:>7.3}  {:>8.3} {:>9.3} {:>5.1}%  {num_hit:>7.1}",
        ms(*seconds),
        *batch as f64 / seconds,
        ms(phases.attention),
        ms(phases.dispatch),
        ms(phases.experts),
        ms(phases.combine),
        ms(phases.head),
        traffic.total() as f64 / 1e9,
        ms(roofline),
        100.0 * roofline / seconds,
    )
}

fn to_json(options: &Options, report: &Report) -> Value {
    let row = |row: &Row| {
        let Row { batch, context, outcome } = row;
        let measured = match outcome {
            Outcome::Measured(measured) => measured,
            Outcome::NoRoom { cache_bytes } => {
                return json!({ "batch": batch, "context": context, "needed_cache_bytes": cache_bytes });
            }
        };
        let Measured { seconds, seconds_min, phases, traffic, num_assignments, num_hit } = measured;
        json!({
            "batch": batch,
            "context": context,
            "seconds": seconds,
            "seconds_min": seconds_min,
            "tokens_per_second": row.tokens_per_second(),
            "phase_seconds": {
                "attention": phases.attention,
                "dispatch": phases.dispatch,
                "experts": phases.experts,
                "combine": phases.combine,
                "head": phases.head,
                "total": phases.total,
            },
            "bytes": {
                "dense": traffic.dense,
                "experts": traffic.experts,
                "entries": traffic.entries,
                "index_keys": traffic.index_keys,
            },
            "roofline_seconds": measured.roofline_seconds(report.copy_bandwidth),
            "assignments_per_layer": num_assignments,
            "experts_hit_per_layer": num_hit,
        })
    };
    json!({
        "device": options.device.to_string(),
        "numerics": options.numerics.to_string(),
        "num_ranks": options.num_ranks,
        "num_layers": options.config.num_hidden_layers,
        "weight_bytes": report.weight_bytes,
        "copy_bytes_per_second": report.copy_bandwidth,
        "rows": report.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

// === impl Args ===

impl Args {
    /// The checked options, and where results go.
    fn resolve(self) -> anyhow::Result<(Options, Option<PathBuf>)> {
        let (config, num_ranks) = match &self.shape {
            Shape::V4Flash => (ModelConfig::v4_flash(), 8),
            Shape::V4Pro => (ModelConfig::v4_pro(), 16),
            Shape::File(path) => (ModelConfig::from_json(&read(path)?)?, 8),
        };
        let config = match self.layers {
            Some(layers) => config.first_layers(layers.get()),
            None => config,
        };
        let num_ranks =
            self.ranks.or_else(|| NonZeroUsize::new(num_ranks)).unwrap_or(NonZeroUsize::MIN);
        let device = match self.kernel_cache {
            Some(dir) => self.device.with_kernel_cache(dir),
            None => self.device,
        };
        let options = Options {
            device,
            numerics: self.numerics,
            num_threads: self.threads,
            config,
            num_ranks,
            batches: self.batch.into_iter().map(NonZeroUsize::get).collect(),
            contexts: self.context,
            num_steps: self.steps,
            cache_bytes_max: self.cache_gib.map(|gib| gib << 30),
            copy_bytes: COPY_BYTES,
        };
        Ok((options, self.json))
    }
}
