//! `switchyard bench kernels`: each GPU kernel by itself.

use std::path::PathBuf;

use serde_json::json;
use switchyard_worker::backend::device::Device;
use switchyard_worker::bench::kernels::{self, Ceilings, Event, Measured, Options};

use super::write_json;
use crate::terminal;

/// Arguments of `switchyard bench kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which GPU: `cuda` or `cuda:N`.
    #[arg(long, default_value = "cuda", value_name = "DEVICE")]
    device: Device,
    /// Only rows whose op or shape contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Folder for compiled GPU kernels [default: compile them anew].
    #[arg(long, value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
    /// Also write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the device cannot be used, or the results cannot be written.
pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let device = match args.kernel_cache {
        Some(dir) => args.device.with_kernel_cache(dir),
        None => args.device,
    };
    let options = Options::published(device, args.filter.unwrap_or_default());
    let report = kernels::run(&options, &mut |event| match event {
        Event::Ceilings(ceilings) => head(ceilings),
        Event::Row(ceilings, row) => {
            let Measured { op, shape, seconds, num_bytes, num_flops } = row;
            terminal::line(format_args!(
                "{op:<18} {shape:<36} {:>10.2} {:>8.0} {:>8.1} {:>5.1}%",
                seconds * 1e6,
                num_bytes / seconds / 1e9,
                num_flops / seconds / 1e12,
                100.0 * row.share(ceilings)
            ));
        }
    })?;
    let row = |row: &Measured| {
        json!({
            "op": row.op,
            "shape": row.shape,
            "seconds": row.seconds,
            "bytes": row.num_bytes,
            "flops": row.num_flops,
            "share": row.share(&report.ceilings),
        })
    };
    let value = json!({
        "device": options.device.to_string(),
        "copy_bytes_per_second": report.ceilings.copy_bandwidth,
        "name": report.ceilings.name,
        "flops_per_second": report.ceilings.flops,
        "rows": report.rows.iter().map(row).collect::<Vec<_>>(),
    });
    write_json(args.json.as_ref(), &value)
}

fn head(ceilings: &Ceilings) {
    terminal::line(format_args!(
        "{}: memory is copied at {:.0} GB/s, read and written",
        ceilings.name,
        ceilings.copy_bandwidth / 1e9
    ));
    terminal::line(match ceilings.flops {
        Some(flops) => {
            format!("its datasheet has {:.0} TFLOP/s in bf16, without sparsity", flops / 1e12)
        }
        None => "no datasheet is known, so shares are of memory alone".to_owned(),
    });
    terminal::line(
        "share: of the time taken, what bytes or operations must take, whichever is more",
    );
    terminal::line("");
    terminal::line(format_args!(
        "{:<18} {:<36} {:>10} {:>8} {:>8} {:>6}",
        "op", "shape", "us", "GB/s", "TFLOP/s", "share"
    ));
}
