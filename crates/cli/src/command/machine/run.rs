//! `machine run` and `create`: a new Machine of an image, beside what deploys take care of.

use super::super::Context;
use super::super::apps::create as create_app;
use super::flags::Shared;
use super::wanted::{self, Program};
use super::{checks, image, mounts, started};
use crate::args::Org;
use crate::console::Style;
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::prompt;
use clap::Args;
use perch_api::wire::{CreateApp, LaunchInput};
use serde_json::{Map, Value, json};

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Image, as of `fly deploy --image`, or a directory to build in; then the command and its arguments
    image: Vec<String>,
    #[command(flatten)]
    new: New,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Image, as of `fly deploy --image`, or a directory to build in; then the command and its arguments
    #[arg(required = true)]
    image: Vec<String>,
    #[command(flatten)]
    new: New,
}

/// The flags that both have.
#[derive(Debug, Args)]
struct New {
    #[command(flatten)]
    shared: Shared,
    /// Region for the Machine
    #[arg(short, long)]
    region: Option<String>,
    /// Refused: use `fly machine update`
    #[arg(long)]
    id: Option<String>,
    /// Name of the Machine; generated if there is none
    #[arg(short, long)]
    name: Option<String>,
    /// Organization of an app that is made for the Machine
    #[arg(long)]
    org: Option<String>,
    /// Destroy the Machine when its program ends
    #[arg(long)]
    rm: bool,
    /// Volume VOLUME:/path that is mounted there, by its ID or the name of one that no Machine has
    #[arg(short, long, value_delimiter = ',')]
    volume: Vec<String>,
    /// Only build the image
    #[arg(long, hide = true)]
    build_only: bool,
}

/// Whether the Machine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launch {
    Now,
    Later,
}

pub(super) async fn run(context: &Context<'_>, args: Run) -> Outcome {
    make(context, &args.image, &args.new, Launch::Now).await
}

pub(super) async fn create(context: &Context<'_>, args: Create) -> Outcome {
    make(context, &args.image, &args.new, Launch::Later).await
}

async fn make(context: &Context<'_>, words: &[String], args: &New, launch: Launch) -> Outcome {
    let Some(app) = find_app(context, args).await? else { return Ok(()) };
    if args.id.as_deref().is_some_and(|id| !id.is_empty()) {
        return Err(Failure::new("to update an existing machine, use 'flyctl machine update'"));
    }
    let mut config = config(context, words, args)?;
    let region = args.region.clone().or_else(|| context.env.get(env::REGION).map(str::to_owned));
    mounts::apply(context, &app, &mut config, &args.volume, region.as_deref()).await?;
    let reference = match (words.first(), &args.shared.dockerfile) {
        (_, Some(_)) => ".",
        (Some(image), None) if !image.is_empty() => image,
        _ => {
            return Err(Failure::new("image argument can't be an empty string")
                .hint("For example `fly machine run nginx`, with nginx in the local Docker"));
        }
    };
    let image = image::find(context, &app, reference, &args.shared).await?;
    if args.build_only {
        return Ok(());
    }
    config.insert("image".to_owned(), image.into());
    let config = wanted::of_map(config, None)?;
    let input = LaunchInput {
        name: args.name.clone().unwrap_or_default(),
        region: region.unwrap_or_default(),
        skip_launch: launch == Launch::Later || !config.view().standbys.is_empty(),
        ..LaunchInput::new(config)
    };
    launch_one(context, &app, &input, launch, args.shared.detach).await
}

fn config(context: &Context<'_>, words: &[String], args: &New) -> Outcome<Map<String, Value>> {
    let mut config = Map::new();
    config.insert("dns".to_owned(), json!({}));
    if args.rm {
        config.insert("auto_destroy".to_owned(), true.into());
    }
    let program = match words {
        [_, command @ ..] if !command.is_empty() => Program::Words(command),
        _ => Program::Stays,
    };
    wanted::apply(context, &mut config, &args.shared, program)?;
    wanted::restart_of_scheduled(&mut config, &args.shared);
    Ok(config)
}

async fn launch_one(
    context: &Context<'_>,
    app: &str,
    input: &LaunchInput,
    launch: Launch,
    detach: bool,
) -> Outcome {
    let console = context.console;
    let made = context.client.create_machine(app, input).await;
    let machine = made.map_err(|error| Failure::from(error).context("could not launch machine"))?;
    let verb = if launch == Launch::Later { "created" } else { "launched" };
    console.line(format!("Success! A Machine has been successfully {verb} in app {app}"));
    console.line(format!(" Machine ID: {}", machine.id));
    console.line(format!(" Instance ID: {}", machine.instance_id));
    console.line(format!(" State: {}", machine.state));
    if input.skip_launch {
        return Ok(());
    }
    console.line("\n Attempting to start machine...\n");
    context.interrupt.cut(started::wait(context, app, &machine)).await?;
    if !detach {
        console.line(console.paint(Style::Green, "==> Monitoring health checks"));
        context.interrupt.cut(checks::watch(context, app, &machine)).await?;
        console.line("");
    }
    console.line("Machine started, you can connect via the following private ip");
    console.line(format!("  {}", machine.private_ip));
    Ok(())
}

/// The app that is named, or one that is made when the user agrees; `None` when not.
async fn find_app(context: &Context<'_>, args: &New) -> Outcome<Option<String>> {
    let (question, name) = match context.app_if_named(&args.shared.app)? {
        None => {
            let question = "Running a Machine without specifying an app will create one for you, is \
                            this what you want?";
            (question.to_owned(), String::new())
        }
        Some(name) => match context.client.get_app(&name).await {
            Ok(_) => return Ok(Some(name)),
            Err(error) if error.status() == Some(404) => {
                (format!("App '{name}' does not exist, would you like to create it?"), name)
            }
            Err(error) => return Err(error.into()),
        },
    };
    if !context.console.is_interactive() {
        let hint = match name.as_str() {
            "" => "Name an app with -a; `fly apps create NAME` makes one".to_owned(),
            name => format!("Make it with `fly apps create {name}`"),
        };
        return Err(Failure::new("prompt: non interactive").context(question).hint(hint));
    }
    if !prompt::confirm(context.console, &question)? {
        return Ok(None);
    }
    make_app(context, name, args.org.clone()).await.map(Some)
}

async fn make_app(context: &Context<'_>, name: String, org: Option<String>) -> Outcome<String> {
    let org = context.org(Org { org }.org).await?;
    let name = match name.as_str() {
        "" => prompt::line(context.console, "App Name:", "")?,
        _ => name,
    };
    let input = CreateApp { name, org_slug: org.slug, ..CreateApp::default() };
    Ok(create_app(context, &input).await?.name)
}
