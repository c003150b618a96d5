//! `dig`: a question to the DNS server of a network, asked by the platform as a member of it.

use super::Context;
use crate::args::{AppArgs, Org};
use crate::env;
use crate::failure::{Failure, Outcome};
use clap::Args;
use perch_api::wire::{Asker, DnsAnswer, DnsQuestion, DnsRecord};

/// Ask the DNS server of an app's network
///
/// Types are AAAA (the default) and TXT, which the server answers for names under .internal and
/// .flycast, A and CNAME, which it asks the host's resolvers for, and AAAA-NATIVE and TXT-NATIVE,
/// which print what a program would get.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Dig {
    /// What is asked for; AAAA if nothing is said
    #[arg(value_name = "TYPE")]
    kind: Option<String>,
    /// The name
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    org: Org,
    /// Print the answers only
    #[arg(short, long)]
    short: bool,
}

pub(super) async fn run(context: &Context<'_>, args: Dig) -> Outcome {
    let kind = args.kind.map_or("AAAA".to_owned(), |kind| kind.to_uppercase());
    let mut name = args.name;
    if !name.ends_with('.') {
        name.push('.');
    }
    let org = args.org.org.or_else(|| context.env.get(env::ORG[0]).map(str::to_owned));
    let asker = match org {
        Some(org) => Asker::Organization(org),
        None => Asker::App(context.app_name(&args.app)?),
    };
    let ask = |kind| context.client.resolve_name(&asker, &name, kind);
    match kind.as_str() {
        "A" | "CNAME" | "TXT" | "AAAA" => {
            let answer = ask(&kind).await?;
            match args.short {
                true => print_short(context, &kind, &answer),
                false => {
                    context.console.line(dump(&answer));
                    Ok(())
                }
            }
        }
        "AAAA-NATIVE" => {
            let (v4, v6) = (ask("A").await?, ask("AAAA").await?);
            let found = v4.answer.iter().chain(&v6.answer);
            let addresses: Vec<_> =
                found.filter(|it| it.kind == "A" || it.kind == "AAAA").collect();
            if addresses.is_empty() {
                return Err(not_found(&name, &v6));
            }
            addresses.iter().for_each(|it| context.console.line(&it.data));
            Ok(())
        }
        "TXT-NATIVE" => {
            let answer = ask("TXT").await?;
            let texts = texts(&answer);
            if texts.is_empty() {
                return Err(not_found(&name, &answer));
            }
            context.console.line(texts.concat());
            Ok(())
        }
        _ => Err(Failure::new(format!("don't understand DNS type {kind}"))
            .hint("Types are AAAA, TXT, A, CNAME, AAAA-NATIVE and TXT-NATIVE")),
    }
}

fn print_short(context: &Context<'_>, kind: &str, answer: &DnsAnswer) -> Outcome {
    if answer.status != "NOERROR" {
        return Err(Failure::new(format!("lookup failed: {}", answer.status)));
    }
    match kind {
        "AAAA" => {
            let addresses = answer.answer.iter().filter(|it| it.kind == "AAAA");
            addresses.for_each(|it| context.console.line(&it.data));
        }
        "TXT" => context.console.line(texts(answer).concat()),
        // As with flyctl, the short form is for those two.
        _ => {}
    }
    Ok(())
}

fn texts(answer: &DnsAnswer) -> Vec<String> {
    let records = answer.answer.iter().filter(|it| it.kind == "TXT");
    records.flat_map(|it| it.texts.clone()).collect()
}

fn not_found(name: &str, answer: &DnsAnswer) -> Failure {
    let why = match answer.status.as_str() {
        "SERVFAIL" | "REFUSED" => "server misbehaving",
        _ => "no such host",
    };
    Failure::new(format!("lookup {name} on [{}]:53: {why}", answer.server))
}

/// The whole message in the form that flyctl's library, and `dig` before it, have made usual.
fn dump(answer: &DnsAnswer) -> String {
    let mut out = format!(
        ";; opcode: {}, status: {}, id: {}\n;; flags:",
        answer.opcode, answer.status, answer.id
    );
    let counts = [
        ("QUERY", answer.question.len()),
        ("ANSWER", answer.answer.len()),
        ("AUTHORITY", answer.authority.len()),
        ("ADDITIONAL", answer.additional.len()),
    ];
    let counts = counts.map(|(name, count)| format!("{name}: {count}")).join(", ");
    answer.flags.iter().for_each(|flag| out.push_str(&format!(" {flag}")));
    out.push_str(&format!("; {counts}\n"));
    let question = |it: &DnsQuestion| format!(";{}\t{}\t {}", it.name, it.class, it.kind);
    section(&mut out, "QUESTION", answer.question.iter().map(question));
    for (name, records) in [
        ("ANSWER", &answer.answer),
        ("AUTHORITY", &answer.authority),
        ("ADDITIONAL", &answer.additional),
    ] {
        section(&mut out, name, records.iter().map(record));
    }
    out
}

fn record(it: &DnsRecord) -> String {
    format!("{}\t{}\t{}\t{}\t{}", it.name, it.ttl, it.class, it.kind, it.data)
}

fn section(out: &mut String, name: &str, lines: impl ExactSizeIterator<Item = String>) {
    if lines.len() == 0 {
        return;
    }
    out.push_str(&format!("\n;; {name} SECTION:\n"));
    lines.for_each(|line| out.push_str(&(line + "\n")));
}
