use clap::Parser;

use super::traces::http_endpoint;
use super::{Args, Protocol};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    log: Args,
}

fn parse(words: &[&str]) -> Result<Args, clap::Error> {
    Cli::try_parse_from(["switchyard"].iter().chain(words)).map(|cli| cli.log)
}

#[test]
fn workers_get_the_traces_of_up() {
    let args = parse(&["--otlp-endpoint", "http://h:4318", "--otlp-protocol", "http/protobuf"]);
    let args = args.unwrap();
    assert_eq!(args.otlp_protocol, Protocol::HttpProtobuf);
    let passed = args.trace_arguments();
    let words: Vec<_> = passed.iter().map(String::as_str).collect();
    assert_eq!(
        words[..4],
        ["--otlp-endpoint", "http://h:4318", "--otlp-protocol", "http/protobuf"]
    );
    assert_eq!(parse(&words).unwrap().trace_arguments(), passed);
    assert_eq!(parse(&[]).unwrap().trace_arguments(), [""; 0]);
}

#[test]
fn ratios_are_shares() {
    for (typed, fits) in
        [("0", true), ("1", true), ("0.25", true), ("1.1", false), ("-1", false), ("NaN", false)]
    {
        let typed = format!("--trace-sample-ratio={typed}");
        assert_eq!(parse(&[&typed]).is_ok(), fits, "{typed}");
    }
}

#[test]
fn an_endpoint_for_all_signals_gets_the_path_of_traces() {
    for url in ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces"] {
        assert_eq!(http_endpoint(url), "http://h:4318/v1/traces");
    }
}
