//! Waiting until all health checks of a changed Machine pass (DE-35).

use super::progress::Mark;
use super::watch::Watch;
use crate::failure::{Failure, Outcome};
use perch_api::wire::{CheckStatus, Machine};
use std::time::Duration;
use tokio::time::Instant;

/// A Machine that is well passes within milliseconds, and one that is not is asked as often as flyctl does.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Watch<'_> {
    /// Waits for a pass of every check of the new version, as long as `--wait-timeout`.
    pub(super) async fn wait_healthy(&self) -> Outcome {
        let Self { context, id, group, .. } = self;
        let (deadline, mut pause) = (Instant::now() + self.job.options.wait_timeout, PAUSE_FIRST);
        let mut told = None;
        loop {
            let machine = context.client.get_machine(&self.job.app.name, id).await?;
            let wanted = machine.config.view().health_checks().len();
            if wanted == 0 {
                return Ok(());
            }
            let passing = passing(&machine);
            if told.replace(passing) != Some(passing) {
                let text =
                    format!("Waiting for {id} [{group}] to become healthy: {passing}/{wanted}");
                self.line.print(context, Mark::Running, &text);
            }
            if wanted <= passing {
                return Ok(());
            }
            self.fail_if_crashing().await?;
            if deadline <= Instant::now() {
                return Err(self.too_late(&machine));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }

    fn too_late(&self, machine: &Machine) -> Failure {
        let id = self.id;
        let message = format!("timeout reached waiting for health checks to pass for machine {id}");
        let failing = machine.checks.iter().filter(|check| !is_passing(check));
        let lines =
            failing.map(|it| format!("  {} is {}: {}", it.name, it.status, first_line(&it.output)));
        let lines: Vec<_> = lines.collect();
        let (app, wait) = (&self.job.app.name, self.job.options.wait_text());
        Failure::new(message).hint(format!(
            "After {wait}:\n{}\nSee more with `fly checks list -a {app}` and `fly logs -a {app} -m {id}`; raise \
             --wait-timeout if it needs longer",
            lines.join("\n")
        ))
    }
}

fn passing(machine: &Machine) -> usize {
    machine.checks.iter().filter(|check| is_passing(check)).count()
}

fn is_passing(check: &CheckStatus) -> bool {
    check.status == "passing"
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
