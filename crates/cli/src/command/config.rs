//! `config validate` and `config show`.

use super::Context;
use crate::args::{AppArgs, Config as Command};
use crate::failure::{Failure, Outcome};
use crate::flytoml::{self, Level, Loaded};

pub(super) async fn run(context: &Context<'_>, command: Command) -> Outcome {
    match command {
        Command::Validate { app, strict } => validate(context, &app, strict),
        Command::Show { app, local, toml } => show(context, &app, local, toml).await,
    }
}

fn validate(context: &Context<'_>, args: &AppArgs, strict: bool) -> Outcome {
    let loaded = context.config_file(args)?.ok_or_else(missing)?;
    report(context, &loaded)?;
    context.console.line("");
    let unknown = loaded.strict_unknown();
    if !strict || unknown.is_empty() {
        return Ok(());
    }
    context.console.line("Strict validation found unrecognised sections or keys:");
    unknown.iter().for_each(|key| context.console.line(format!("  - {key}")));
    Err(Failure::new("strict validation failed"))
}

fn missing() -> Failure {
    Failure::new("no fly.toml here").hint("Run `fly launch` to write one, or name it with -c PATH")
}

/// Prints what is wrong with a file, and fails when something stops a deploy.
pub(super) fn report(context: &Context<'_>, loaded: &Loaded) -> Outcome {
    let path = loaded.path.display();
    context.console.line(format!("Validating {path}"));
    for problem in &loaded.problems {
        let mark = match problem.level {
            Level::Error => "   ✘",
            Level::Warning => "   WARN ",
        };
        context.console.line(format!("{mark}{path}:{problem}"));
    }
    if loaded.has_errors() {
        return Err(Failure::new("App configuration is not valid"));
    }
    context.console.line("✓ Configuration is valid");
    Ok(())
}

/// The deployed configuration, which the newest release keeps, or the local file.
async fn show(context: &Context<'_>, args: &AppArgs, local: bool, toml: bool) -> Outcome {
    let loaded = match local {
        true => context.config_file(args)?.ok_or_else(missing)?,
        false => deployed(context, args).await?,
    };
    if let Some(problem) = loaded.problems.iter().find(|problem| problem.level == Level::Error) {
        let path = loaded.path.display();
        return Err(Failure::new(format!("{path}:{problem}")));
    }
    if toml {
        context.console.text(&flytoml::to_toml(&loaded.config));
        return Ok(());
    }
    let json = serde_json::to_string_pretty(&flytoml::to_json(&loaded.config))?;
    context.console.line(spaced(&json));
    Ok(())
}

async fn deployed(context: &Context<'_>, args: &AppArgs) -> Outcome<Loaded> {
    let app = context.app_name(args)?;
    let release = context.client.current_release(&app).await;
    let definition = match release {
        Ok(release) => release.definition,
        Err(error) if error.status() == Some(404) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(definition) = definition else {
        return Err(Failure::new(format!("app {app} has not been deployed yet"))
            .hint("Show the local file with `fly config show --local`"));
    };
    let name = std::path::PathBuf::from(format!("{app}.json"));
    Ok(flytoml::parse(&name, &serde_json::to_string(&definition)?)?)
}

/// flyctl puts an empty line before each line that opens an object or list, unless the line before
/// opened one too.
fn spaced(json: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let opens = |line: &str| line.ends_with('{') || line.ends_with('[');
    for line in json.lines() {
        if opens(line) && out.last().is_some_and(|last| !opens(last)) {
            out.push("");
        }
        out.push(line);
    }
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_stands_before_each_section() {
        let json = "{\n  \"a\": 1,\n  \"b\": {\n    \"c\": [\n      1\n    ]\n  }\n}";
        let expected = "{\n  \"a\": 1,\n\n  \"b\": {\n    \"c\": [\n      1\n    ]\n  }\n}";
        assert_eq!(spaced(json), expected);
    }
}
