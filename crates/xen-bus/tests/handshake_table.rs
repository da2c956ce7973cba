//! Every pair of states, from both sides, as the published table has it: each cell is the next step
//! of the real code. `handshake/table.md` is what the documentation prints.

use std::fmt::Write;

use xen_bus::handshake::XenbusState::{
    Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown,
};
use xen_bus::handshake::{
    BackendCommand, BackendHandshake, BackendSeen, FrontendCommand, FrontendHandshake,
    FrontendSeen, Look, Outcome, XenbusState,
};
use xen_types::Session;

const OURS: Session = Session(1);
const OTHER: Session = Session(2);

#[test]
fn every_pair_is_handled_as_published() {
    let rendered = render();
    assert!(
        rendered == include_str!("handshake/table.md"),
        "the code says:
{rendered}"
    );
}

fn render() -> String {
    let mut out = String::new();
    let columns = "absent or other | 1 | 2 | 3 | 3, another session | 4 | 5 | 6";
    for (title, online) in [("1", true), ("0", false)] {
        head(&mut out, &format!("backend, `online` = {title}"), columns);
        for (name, backend, seen) in backends() {
            let seen = BackendSeen { online, ..seen };
            row(
                &mut out,
                name,
                backend_columns(&seen).map(|seen| backend_does(&backend, &seen)),
            );
        }
    }
    let columns = "absent | other | 1 | 2 | 3 | 4 | 5 | 6";
    for (title, session) in [
        ("its session or none yet", OURS),
        ("another session", OTHER),
    ] {
        head(&mut out, &format!("frontend, {title}"), columns);
        for (name, frontend, own) in frontends() {
            let seen = FrontendSeen {
                session: Some(session),
                ..seen_by_frontend(own)
            };
            row(
                &mut out,
                name,
                frontend_columns(&seen).map(|seen| frontend_does(&frontend, &seen)),
            );
        }
    }
    out
}

fn head(out: &mut String, title: &str, columns: &str) {
    let rules = columns
        .split('|')
        .map(|_| "---")
        .collect::<Vec<_>>()
        .join(" | ");
    let gap = if out.is_empty() { "" } else { "\n" };
    write!(out, "{gap}| {title} | {columns} |\n| --- | {rules} |\n").unwrap();
}

fn row<const N: usize>(out: &mut String, name: &str, cells: [&str; N]) {
    writeln!(out, "| {name} | {} |", cells.join(" | ")).unwrap();
}

/// The backend in each of its situations, with what it reads there.
fn backends() -> Vec<(&'static str, BackendHandshake, BackendSeen)> {
    let unlocked = BackendHandshake::started();
    let fresh = after(&unlocked, Initialising, Outcome::Done);
    let idle = after(&fresh, Initialising, Outcome::Done);
    let mapped = after(&idle, InitWait, Outcome::Done);
    let refused = after(&idle, InitWait, Outcome::Failed("bad keys".into()));
    let serving = after(&mapped, Initialised, Outcome::Done);
    let mut faulted = serving.clone();
    faulted.fault("bad index");
    let closing = after(&faulted, Connected, Outcome::Done);
    let mut asked = serving.clone();
    let offline = BackendSeen {
        online: false,
        frontend: Connected,
        ..seen_by_backend(Connected)
    };
    assert_eq!(asked.next(&offline), Some(BackendCommand::AskRemoval));
    assert_eq!(asked.done(Outcome::Done), Look::Again);
    let mut let_go = asked.clone();
    let_go.drained();
    let absent = BackendSeen {
        own: None,
        online: false,
        ..seen_by_backend(Unknown)
    };
    let resumable = BackendSeen {
        state_file_valid: true,
        ..seen_by_backend(Connected)
    };
    let at = seen_by_backend;
    vec![
        ("1", idle.clone(), at(Initialising)),
        ("2", idle.clone(), at(InitWait)),
        ("3, mapped and bound", mapped, at(Initialised)),
        ("3, keys refused", refused, at(Initialised)),
        ("4", serving.clone(), at(Connected)),
        ("4, a fault", faulted, at(Connected)),
        ("4, asked to let go", asked, at(Connected)),
        ("4, let go or 30 s over", let_go, at(Connected)),
        ("4, all unmapped", idle.clone(), at(Connected)),
        ("5, something mapped", closing, at(Closing)),
        ("5, holding nothing", idle.clone(), at(Closing)),
        ("6", idle.clone(), at(Closed)),
        ("no directory, something mapped", serving, absent.clone()),
        ("no directory, holding nothing", idle, absent),
        ("started", unlocked, at(Connected)),
        ("started, locked, 1", fresh.clone(), at(Initialising)),
        ("started, locked, 2", fresh.clone(), at(InitWait)),
        ("started, locked, 3", fresh.clone(), at(Initialised)),
        ("started, locked, 4", fresh.clone(), at(Connected)),
        (
            "started, locked, 4, state file valid",
            fresh.clone(),
            resumable,
        ),
        ("started, locked, 5", fresh.clone(), at(Closing)),
        ("started, locked, 6", fresh, at(Closed)),
    ]
}

/// The handshake after its next step, taken in state `own` with a frontend in 3.
fn after(backend: &BackendHandshake, own: XenbusState, outcome: Outcome) -> BackendHandshake {
    let mut backend = backend.clone();
    let seen = BackendSeen {
        frontend: Initialised,
        ..seen_by_backend(own)
    };
    backend.next(&seen).unwrap();
    assert_eq!(backend.done(outcome), Look::Again);
    backend
}

fn seen_by_backend(own: XenbusState) -> BackendSeen {
    BackendSeen {
        own: Some(own),
        session: Some(OURS),
        online: true,
        frontend: Unknown,
        echo: Some(OURS),
        state_file_valid: false,
        random: 7,
    }
}

fn backend_columns(seen: &BackendSeen) -> [BackendSeen; 8] {
    let at = |frontend, echo| BackendSeen {
        frontend,
        echo: Some(echo),
        ..seen.clone()
    };
    [
        at(Unknown, OURS),
        at(Initialising, OURS),
        at(InitWait, OURS),
        at(Initialised, OURS),
        at(Initialised, OTHER),
        at(Connected, OURS),
        at(Closing, OURS),
        at(Closed, OURS),
    ]
}

fn backend_does(backend: &BackendHandshake, seen: &BackendSeen) -> &'static str {
    match backend.clone().next(seen) {
        None if backend.serves() => "serves",
        None => "waits",
        Some(BackendCommand::TakeLock) => "takes the lock",
        Some(BackendCommand::EnterInitWait { session }) => {
            assert!(session != OURS && Some(session) != seen.echo);
            "2, new session"
        }
        Some(BackendCommand::Attach { session }) => {
            assert_eq!(session, OURS);
            "reads keys, 3, maps"
        }
        Some(BackendCommand::Reattach) => "attaches again",
        Some(BackendCommand::Publish { from, state, error }) => {
            assert_eq!(Some(from), seen.own);
            match (state, error) {
                (Connected, None) => "4",
                (Closing, None) => "5",
                (Closing, Some(_)) => "`error`, 5",
                (Closed, None) => "6",
                other => panic!("{other:?}"),
            }
        }
        Some(BackendCommand::AskRemoval) => "asks to let go",
        Some(BackendCommand::Teardown) => "stops, unmaps",
    }
}

/// The frontend in each of its situations, with the own state that it reads there.
fn frontends() -> Vec<(&'static str, FrontendHandshake, XenbusState)> {
    let starting = FrontendHandshake::started();
    let connecting = next(&starting, Initialising, InitWait);
    let connected = next(&connecting, Initialised, Connected);
    let mut faulted = connected.clone();
    faulted.fault();
    let stopped = next(&faulted, Connected, Connected);
    let over = next(&stopped, Closed, Closed);
    vec![
        ("starting, own state not 1", starting.clone(), Connected),
        ("starting, 1", starting, Initialising),
        ("3", connecting, Initialised),
        ("4", connected, Connected),
        ("4, a fault", faulted, Connected),
        ("devices reset", stopped.clone(), Connected),
        ("devices reset, 5", stopped.clone(), Closing),
        ("devices reset, 6", stopped, Closed),
        ("revoked", over, Closed),
    ]
}

/// The handshake after its next step, done in state `own` with a backend in `backend`.
fn next(frontend: &FrontendHandshake, own: XenbusState, backend: XenbusState) -> FrontendHandshake {
    let mut frontend = frontend.clone();
    let seen = FrontendSeen {
        backend: Some(backend),
        ..seen_by_frontend(own)
    };
    frontend.next(&seen).unwrap();
    assert_eq!(frontend.done(Outcome::Done), Look::Again);
    frontend
}

fn seen_by_frontend(own: XenbusState) -> FrontendSeen {
    FrontendSeen {
        own: Some(own),
        session: Some(OURS),
        backend: None,
        online: true,
    }
}

fn frontend_columns(seen: &FrontendSeen) -> [FrontendSeen; 8] {
    let absent = FrontendSeen {
        backend: None,
        online: false,
        ..seen.clone()
    };
    let at = |backend| FrontendSeen {
        backend: Some(backend),
        ..seen.clone()
    };
    [
        absent,
        at(Unknown),
        at(Initialising),
        at(InitWait),
        at(Initialised),
        at(Connected),
        at(Closing),
        at(Closed),
    ]
}

fn frontend_does(frontend: &FrontendHandshake, seen: &FrontendSeen) -> &'static str {
    match frontend.clone().next(seen) {
        None if frontend.is_connected() => "serves",
        None => "waits",
        Some(FrontendCommand::Publish(Initialising)) => "1",
        Some(FrontendCommand::Publish(Connected)) => "4",
        Some(FrontendCommand::Publish(Closing)) => "5",
        Some(FrontendCommand::Publish(Closed)) => "6",
        Some(FrontendCommand::Publish(state)) => panic!("{state:?}"),
        Some(FrontendCommand::Share { session }) => {
            assert_eq!(Some(session), seen.session);
            "grants, writes keys, 3"
        }
        Some(FrontendCommand::Stop) => "resets its devices",
        Some(FrontendCommand::Revoke) => "revokes",
    }
}
