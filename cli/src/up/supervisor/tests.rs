use std::time::Duration;

use super::{Backoff, Event, HEALTHY_AFTER, RESTARTS_MAX, Spec, Supervisor, WorkerName};

/// A worker that runs a shell script.
fn script(text: &str) -> Spec {
    Spec {
        name: WorkerName { model: "m".into(), number: 1 },
        program: "/bin/sh".into(),
        args: vec!["-c".into(), text.into()],
    }
}

#[test]
fn pauses_double_and_end() {
    let mut backoff = Backoff::default();
    let short = Duration::from_secs(1);
    let pauses: Vec<_> = std::iter::from_fn(|| backoff.next(short)).collect();
    assert_eq!(pauses.len(), RESTARTS_MAX as usize);
    assert!(pauses.windows(2).all(|pair| pair[1] == pair[0] * 2), "{pauses:?}");
    assert_eq!(backoff.next(HEALTHY_AFTER), Some(pauses[0]), "a healthy life starts anew");
}

#[tokio::test]
async fn a_death_is_told_with_its_reason_and_lines_come_first() {
    let script = script("echo one line >&2; echo 'error: no such expert' >&2; exit 3");
    let mut supervisor = Supervisor::start(vec![script]);
    let Some(Event::Line(_, line)) = supervisor.next_event().await else { panic!("no line") };
    assert_eq!(line, "one line");
    let Some(Event::Exited(exit)) = supervisor.next_event().await else { panic!("no exit") };
    assert_eq!(exit.cause, "no such expert");
    assert!(exit.restart_in.is_some());
    supervisor.stop(|_, _| {}).await;
}

#[tokio::test]
async fn a_kill_names_the_signal() {
    let mut supervisor = Supervisor::start(vec![script("kill -9 $$")]);
    let Some(Event::Exited(exit)) = supervisor.next_event().await else { panic!("no exit") };
    assert_eq!(exit.cause, "killed by signal 9");
}

#[tokio::test]
async fn the_end_of_its_input_ends_a_worker() {
    let mut supervisor = Supervisor::start(vec![script("echo up >&2; cat; echo bye >&2")]);
    let Some(Event::Line(..)) = supervisor.next_event().await else { panic!("no line") };
    let mut said = Vec::new();
    supervisor.stop(|_, line| said.push(line.to_owned())).await;
    assert_eq!(said, ["bye"]);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let mut spec = script("");
    spec.program = "/nowhere/switchyard".into();
    let mut supervisor = Supervisor::start(vec![spec]);
    let Some(Event::Exited(exit)) = supervisor.next_event().await else { panic!("no exit") };
    assert!(exit.cause.contains("/nowhere/switchyard"), "{}", exit.cause);
}

#[tokio::test]
async fn a_retired_worker_that_ends_is_not_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("starts");
    let script = script(&format!("echo x >> {}; echo up >&2; read line", log.display()));
    let mut supervisor = Supervisor::start(vec![script]);
    let Some(Event::Line(..)) = supervisor.next_event().await else { panic!("no line") };
    supervisor.retire();
    supervisor.stop(|_, _| {}).await;
    assert_eq!(std::fs::read_to_string(log).unwrap(), "x\n");
}
