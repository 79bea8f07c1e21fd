use super::*;
use clap::Parser as _;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn bench(line: &str) -> anyhow::Result<ExitCode> {
    let words = ["bench"].into_iter().chain(line.split_whitespace());
    run(Line::try_parse_from(words)?.args)
}

#[test]
fn a_step_is_measured_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("step.json");
    let shape = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/micro/q/config.json");
    let line = format!(
        "step --shape {shape} --ranks 2 --batch 1,2 --context 40 --layers 2 --steps 1 --json {}",
        file.display()
    );
    bench(&line).unwrap();
    let value: Value = serde_json::from_str(&read(&file).unwrap()).unwrap();
    assert_eq!((&value["device"], &value["num_layers"]), (&"cpu".into(), &2.into()));
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(row["bytes"]["dense"].as_u64().unwrap() > 0);
    }
}

#[test]
fn a_case_without_room_is_reported_as_such() {
    let shape = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/micro/q/config.json");
    let line = format!("step --shape {shape} --ranks 2 --batch 1 --context 40 --cache-gib 0");
    bench(&line).unwrap();
}

#[test]
fn a_shape_that_is_no_file_is_refused() {
    let error = bench("step --shape v5").unwrap_err();
    assert!(format!("{error:#}").contains("cannot read v5"), "{error:#}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_needs_a_program_that_knows_of_gpus() {
    for line in ["step --device cuda", "kernels"] {
        let error = bench(line).unwrap_err();
        assert!(format!("{error:#}").contains("built without CUDA"), "{error:#}");
    }
}

#[test]
fn kernels_are_those_of_a_gpu() {
    let error = bench("kernels --device cpu").unwrap_err();
    assert!(format!("{error:#}").contains("GPU"), "{error:#}");
}
