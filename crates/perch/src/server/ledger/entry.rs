//! What happened, as the ledger says it.

use perch_api::server::Peer;
use perch_api::wire::{self, LedgerEvent, LedgerPhase, Trigger};
use perch_core::ledger::Depth;
use perch_proxy::control::{self, Cause, Note, NoteKind};

use crate::server::history::Source;
use crate::server::views;

/// Who caused it; `cause` is the caller that the proxy named.
pub(crate) fn trigger(source: &Source, cause: Option<&Cause>) -> Trigger {
    let of_kind = |kind: &str| Trigger { kind: kind.to_owned(), ..Trigger::default() };
    match source {
        Source::User(Peer::Machine(own)) => {
            Trigger { app: own.app.clone(), machine: own.id.clone(), ..of_kind("machine") }
        }
        Source::User(Peer::Local { uid, .. }) => {
            Trigger { who: format!("uid {uid}"), ..of_kind("operator") }
        }
        Source::User(Peer::Token(holder)) => {
            Trigger { who: format!("token {}", holder.name), ..of_kind("operator") }
        }
        Source::Platform | Source::Because(_) => of_kind("platform"),
        Source::Proxy => cause.map_or_else(|| of_kind("proxy"), caller),
    }
}

/// A caller.
pub(crate) fn caller(cause: &Cause) -> Trigger {
    let (kind, app, machine) = match &cause.source {
        control::Source::Machine { app, machine } => ("machine", app.as_str(), machine.as_str()),
        control::Source::Host => ("host", "", ""),
        control::Source::Unknown if views::is_platform(cause.caller) => ("operator", "", ""),
        control::Source::Unknown => ("peer", "", ""),
    };
    // What has no path is no request, but words.
    let request = cause.request.as_deref().and_then(|request| request.split_once(' '));
    let request = request.filter(|(_, path)| path.starts_with(['/', '*']));
    let (method, path) = request.unwrap_or_default();
    Trigger {
        kind: kind.to_owned(),
        app: app.to_owned(),
        machine: machine.to_owned(),
        address: cause.caller.to_string(),
        port: cause.caller_port,
        destination: cause.dest.to_string(),
        method: method.to_owned(),
        path: path.to_owned(),
        who: if kind == "operator" { "`fly proxy`".to_owned() } else { String::new() },
    }
}

/// What the proxy tells. `history` is the Machine's, newest first.
pub(crate) fn of_note(note: Note, history: &[wire::Event]) -> LedgerEvent {
    let kind = match note.kind {
        NoteKind::Hold => "hold",
        NoteKind::Refusal => "refusal",
        NoteKind::Veto => "veto",
    };
    let from = match note.how.as_str() {
        "thaw" => depth_of_frozen(history).as_str(),
        "start" => depth_of_started(history).as_str(),
        "hold" => Depth::Started.as_str(),
        _ => "",
    };
    let phases = note.phases.into_iter();
    LedgerEvent {
        app: note.app,
        machine: note.machine.unwrap_or_default(),
        run: note.run,
        kind: kind.to_owned(),
        from: from.to_owned(),
        how: note.how,
        first: note.first,
        trigger: note.cause.as_ref().map(caller),
        reason: note.reason,
        total_micros: note.total_micros,
        phases: phases.map(|it| LedgerPhase { name: it.name, micros: it.micros }).collect(),
        left_out: note.left_out,
        ..LedgerEvent::default()
    }
}

/// How deep a Machine slept before its last thaw, or sleeps.
pub(crate) fn depth_of_frozen(history: &[wire::Event]) -> Depth {
    let mut kinds = history.iter().map(|event| event.kind.as_str());
    match kinds.find(|kind| matches!(*kind, "page_out" | "suspend" | "exit" | "launch")) {
        Some("page_out") => Depth::PagedOut,
        Some(_) | None => Depth::Suspended,
    }
}

fn depth_of_started(history: &[wire::Event]) -> Depth {
    let start = history.iter().find(|event| event.kind == "start");
    let armed = start.and_then(|event| event.request.as_ref()?.details.get("armed"));
    if armed.is_some() { Depth::Armed } else { Depth::Stopped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(kinds: &[&str]) -> Vec<wire::Event> {
        let event = |kind: &&str| wire::Event { kind: (*kind).to_owned(), ..Default::default() };
        kinds.iter().map(event).collect()
    }

    #[test]
    fn a_page_out_since_it_fell_asleep_is_the_depth_whether_the_resume_is_known_or_not() {
        for (kinds, expected) in [
            (&["resume", "page_out", "suspend", "start"][..], Depth::PagedOut),
            (&["page_out", "suspend", "resume", "suspend"], Depth::PagedOut),
            (&["resume", "suspend", "suspend", "resume", "page_out"], Depth::Suspended),
            (&["heartbeat", "suspend", "page_out"], Depth::Suspended),
            (&[], Depth::Suspended),
        ] {
            assert_eq!(depth_of_frozen(&history(kinds)), expected, "{kinds:?}");
        }
    }

    #[test]
    fn words_that_are_no_request_are_no_path() {
        let cause = |request: &str| Cause {
            caller: "fdaa::1".parse().expect("an address"),
            caller_port: 4,
            source: control::Source::Unknown,
            dest: "[fdaa::2]:80".parse().expect("an address"),
            request: Some(request.to_owned()),
        };
        let of = |request: &str| {
            let Trigger { kind, method, path, .. } = caller(&cause(request));
            (kind, method, path)
        };
        let peer = || "peer".to_owned();
        assert_eq!(of("GET /a b"), (peer(), "GET".to_owned(), "/a b".to_owned()));
        assert_eq!(of("the next byte of a connection"), (peer(), String::new(), String::new()));
    }
}
