//! Waiting for a Machine's health checks, with flyctl's lines.

use super::super::Context;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use perch_api::wire::Machine;
use std::time::Duration;
use tokio::time::Instant;

/// How long checks may take to pass.
const PASSING_MAX: Duration = Duration::from_secs(300);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until all checks that the Machine has pass.
pub(in crate::command) async fn watch(
    context: &Context<'_>,
    app: &str,
    machine: &Machine,
) -> Outcome {
    if machine.checks.is_empty() {
        context.console.line("No health checks found");
        return Ok(());
    }
    let deadline = Instant::now() + PASSING_MAX;
    loop {
        let now = context.client.get_machine(app, &machine.id).await?;
        let passing = now.checks.iter().filter(|check| check.status == "passing").count();
        let paint = |style: Style, text: &str| context.console.paint(style, text);
        let (id, state) = (paint(Style::Bold, &now.id), paint(Style::Green, now.state.as_str()));
        let count = paint(Style::Green, &format!("{passing}/{}", now.checks.len()));
        context.console.note(format!("  Waiting for {id} to become healthy ({state}, {count})"));
        let left = machine.checks.len().saturating_sub(passing);
        if left == 0 {
            return Ok(());
        }
        if deadline <= Instant::now() {
            return Err(Failure::new(format!("Waiting for {left} non-passing checks")));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
