use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use serde_json::{Value, json};
use switchyard_coordinator::http::admin::StatusObject;

use super::live::{Action, Screen, action};
use super::view::Palette;

const URL: &str = "http://127.0.0.1:8080";

fn rank(rank: u32, fields: &Value) -> Value {
    let mut rank = json!({
        "rank": rank, "state": "ready", "loaded": 1.0, "worker": rank + 1,
        "address": format!("127.0.0.1:4010{rank}"), "pid": 31_000 + rank, "device": "cpu, 1 thread",
        "sequences": 3, "kv_blocks_used": 12, "kv_blocks": 512, "tokens_per_second": 103.4,
        "step_seconds": 0.0091,
    });
    rank.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    rank
}

fn model(ranks: Vec<Value>, fields: &Value) -> Value {
    let mut model = json!({
        "id": "demo-flash", "ready": true, "phase": "ready", "detail": "ready", "epoch": 3,
        "max_model_len": 4096, "running": 6, "waiting": 2, "stalled_seconds": 0.01,
        "answers_per_second": 3.25, "generated_tokens_per_second": 206.8, "prompt_tokens_per_second": 41.0,
        "step_seconds": 0.0098, "kv_blocks_used": 24, "kv_blocks": 1024, "ranks": ranks, "faults": [],
    });
    model.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    model
}

fn status(models: &[Value]) -> StatusObject {
    let status = json!({
        "object": "status", "version": "0.1.0", "uptime_seconds": 192.4, "ready": true, "models": models,
    });
    serde_json::from_value(status).unwrap()
}

/// A model that serves, and one that has just lost a rank.
fn eventful() -> StatusObject {
    let serving = model(vec![rank(0, &json!({})), rank(1, &json!({}))], &json!({}));
    let idle = json!({
        "sequences": 0, "kv_blocks_used": 0, "tokens_per_second": 0.0, "step_seconds": null,
    });
    let mut lost = idle.clone();
    lost["state"] = json!("lost");
    let mut loading = idle;
    loading["state"] = json!("loading");
    loading["loaded"] = json!(0.25);
    let reason = "rank 1 stopped before layer 3 dispatch; rank 1, worker 2 (127.0.0.1:40101, pid 31001), left";
    let recovering = json!({
        "id": "other", "phase": "recovering", "detail": format!("recovering: {reason}"), "running": 5,
        "step_seconds": null, "kv_blocks_used": 0, "stalled_seconds": 7.2,
        "faults": [
            { "seconds_ago": 4000.0, "fault": "not_formed", "ranks": [], "epoch": 1, "message": "nobody" },
            { "seconds_ago": 2.0, "fault": "worker_lost", "ranks": [1], "epoch": 3, "message": reason },
        ],
    });
    let recovering = model(vec![rank(0, &loading), rank(1, &lost)], &recovering);
    status(&[serving, recovering])
}

fn terminal(width: u16, height: u16) -> Terminal<TestBackend> {
    Terminal::new(TestBackend::new(width, height)).unwrap()
}

fn drawn(screen: &mut Screen, (width, height): (u16, u16)) -> String {
    let mut terminal = terminal(width, height);
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_small_terminal_shows_everything() {
    let mut screen = Screen::new(URL, eventful(), Palette::Plain);
    let drawn = drawn(&mut screen, (80, 24));
    let golden = include_str!("golden/80x24.txt");
    assert_eq!(drawn.trim_end(), golden.trim_end(), "drawn:\n{drawn}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_scrolled_to_and_no_further() {
    let mut screen = Screen::new(URL, eventful(), Palette::Plain);
    let top = drawn(&mut screen, (80, 8));
    assert!(top.contains("switchyard 0.1.0") && top.contains("more lines"), "{top}");
    screen.scroll(100);
    let bottom = drawn(&mut screen, (80, 8));
    assert!(bottom.contains("not formed: nobody") && bottom.contains("0 more lines"), "{bottom}");
    screen.scroll(-1);
    assert_ne!(drawn(&mut screen, (80, 8)), bottom);
    // A larger terminal shows the top again.
    assert!(drawn(&mut screen, (80, 50)).contains("switchyard 0.1.0"));
}

#[tokio::test(start_paused = true)]
async fn colours_say_nothing_that_words_do_not() {
    let colored = &mut Screen::new(URL, eventful(), Palette::Colored);
    let plain = &mut Screen::new(URL, eventful(), Palette::Plain);
    assert_eq!(drawn(colored, (100, 30)), drawn(plain, (100, 30)));
    let colors = |screen: &mut Screen| {
        let mut terminal = terminal(100, 30);
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset).map(|cell| cell.fg).collect::<Vec<_>>()
    };
    assert!(colors(colored).contains(&Color::Red) && colors(colored).contains(&Color::Green));
    assert_eq!(colors(plain), []);
}

#[tokio::test(start_paused = true)]
async fn a_silent_coordinator_leaves_what_was_known_and_says_so() {
    let mut screen = Screen::new(URL, eventful(), Palette::Plain);
    screen.take(Err(anyhow::anyhow!("no server answers")));
    tokio::time::advance(std::time::Duration::from_secs(4)).await;
    screen.take(Err(anyhow::anyhow!("no server answers")));
    let old = drawn(&mut screen, (80, 24));
    assert!(old.contains("OLD by 5 s: no server answers") && old.contains("demo-flash"), "{old}");
    screen.take(Ok(status(&[])));
    let new = drawn(&mut screen, (80, 24));
    assert!(!new.contains("OLD") && !new.contains("demo-flash"), "{new}");
}

#[test]
fn keys_do_what_people_expect() {
    let plain = |code| action(KeyEvent::new(code, KeyModifiers::NONE));
    assert_eq!(plain(KeyCode::Char('q')), Action::Quit);
    assert_eq!(plain(KeyCode::Esc), Action::Quit);
    assert_eq!(plain(KeyCode::Char('c')), Action::Nothing);
    assert_eq!(action(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Action::Quit);
    assert_eq!((plain(KeyCode::Up), plain(KeyCode::Down)), (Action::Scroll(-1), Action::Scroll(1)));
}
