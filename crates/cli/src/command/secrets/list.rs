//! `secrets list`: names, digests, and which Machines start with them.

use super::super::Context;
use crate::args::AppArgs;
use crate::failure::Outcome;
use crate::render;
use perch_api::wire::{MachineFilter, Secret};
use serde_json::{Value, json};

/// With more Machines flyctl shows no status.
const MACHINES_MAX: usize = 100;

/// Whether the Machines of an app start with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Deployed,
    Staged,
    Partial,
    Unknown,
}

impl Status {
    fn of(secret: &Secret, machines: usize) -> Self {
        match secret.machines {
            _ if machines == 0 => Self::Staged,
            None => Self::Unknown,
            Some(0) => Self::Staged,
            Some(count) if count < machines => Self::Partial,
            Some(_) => Self::Deployed,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Deployed => "Deployed",
            Self::Staged => "Staged",
            Self::Partial => "Partial",
            Self::Unknown => "Unknown",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Staged => "* ",
            Self::Partial => "! ",
            Self::Deployed | Self::Unknown => "",
        }
    }
}

pub(super) async fn run(context: &Context<'_>, args: &AppArgs, as_json: bool) -> Outcome {
    let app = context.app_name(args)?;
    let secrets = context.client.list_secrets(&app).await?;
    let machines = context.client.list_machines(&app, &MachineFilter::default()).await?.len();
    let known = machines <= MACHINES_MAX;
    let statuses: Vec<_> = secrets.iter().map(|it| Status::of(it, machines)).collect();
    let both = || secrets.iter().zip(&statuses);
    if as_json {
        let object = |(secret, status): (&Secret, &Status)| -> Value {
            let mut object = json!({"name": secret.name, "digest": secret.digest});
            if known {
                object["status"] = status.word().into();
            }
            object
        };
        return Ok(render::json(context.console, &both().map(object).collect::<Vec<_>>())?);
    }
    let row = |(secret, status): (&Secret, &Status)| match known {
        true => {
            let name = format!("{}{}", status.mark(), secret.name);
            vec![name, secret.digest.clone(), status.word().to_owned()]
        }
        false => vec![secret.name.clone(), secret.digest.clone()],
    };
    let headers: &[&str] = if known { &["Name", "Digest", "Status"] } else { &["Name", "Digest"] };
    render::table(context.console, "", headers, &both().map(row).collect::<Vec<_>>());
    if known {
        let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
        summary(count(Status::Staged), count(Status::Partial))
            .into_iter()
            .for_each(|line| context.console.line(line));
    }
    Ok(())
}

/// What is still to be deployed, in flyctl's words.
fn summary(staged: usize, partial: usize) -> Vec<String> {
    let noun = |count| if count == 1 { "secret" } else { "secrets" };
    let verb = |count| if count == 1 { "is" } else { "are" };
    match (staged, partial) {
        (0, 0) => Vec::new(),
        (_, 0) => vec![format!(
            "There {} {staged} {} not deployed. Deploy with `fly secrets deploy` to make them available.",
            verb(staged),
            noun(staged)
        )],
        (0, _) => vec![format!(
            "There {} {partial} {} partially deployed. This can happen during rolling deployments or if some \
             machines failed to update. Deploy with `fly secrets deploy` to ensure all machines have the latest \
             configuration.",
            verb(partial),
            noun(partial)
        )],
        (_, _) => vec![
            "Some secrets need to be deployed:".to_owned(),
            format!("  * {staged} {} staged (not yet deployed)", noun(staged)),
            format!(
                "  ! {partial} {} partially deployed (deployed to some machines)",
                noun(partial)
            ),
            String::new(),
            "Deploy with `fly secrets deploy` to sync all machines.".to_owned(),
        ],
    }
}
