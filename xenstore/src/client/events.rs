//! Watch events between their arrival and the moment somebody asks for them.
//!
//! A watch says "look again", never "this happened once": so an event that is queued already is
//! not queued twice, and one that does not fit any more becomes the event of its watch, on the
//! watched path itself, which is queued once. Nothing is lost by either, whatever waits keeps its
//! place, and memory stays bounded whatever a guest writes.

use std::collections::{HashMap, HashSet, VecDeque};

use super::StoreError;
use crate::wire::{check_path, strings};

/// Distinct events that are kept as they are; beyond it there is at most one for each watch. A
/// backend of a hundred guests sees a few hundred between two looks; a guest that writes thousands
/// of paths below a watched one is not worth more memory than this many paths at their longest,
/// 8 MiB in all.
const MAX_QUEUED: usize = 1024;

/// Something at or below a watched path changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// The changed node, or the watched path. Relative if the watch was. Chosen by whoever may
    /// write there.
    pub path: String,
    /// The token of the watch.
    pub token: String,
}

#[derive(Debug, Default)]
pub(super) struct EventQueue {
    order: VecDeque<WatchEvent>,
    queued: HashSet<WatchEvent>,
    /// The watched paths of each token.
    watches: HashMap<String, Vec<String>>,
}

impl EventQueue {
    /// Whether it is new.
    pub(super) fn add_watch(&mut self, path: &str, token: &str) -> bool {
        let paths = self.watches.entry(token.to_owned()).or_default();
        let new = !paths.iter().any(|other| other == path);
        if new {
            paths.push(path.to_owned());
        }
        new
    }

    /// Events of the watch go too, unless another watch has the same token.
    pub(super) fn remove_watch(&mut self, path: &str, token: &str) {
        let Some(paths) = self.watches.get_mut(token) else {
            return;
        };
        paths.retain(|other| other != path);
        if paths.is_empty() {
            self.watches.remove(token);
            self.order.retain(|event| event.token != token);
            self.queued.retain(|event| event.token != token);
        }
    }

    pub(super) fn push_payload(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        let mut parts = strings(payload);
        let (path, token) = (parts.next(), parts.next());
        let path = path.and_then(|path| check_path(path).ok());
        let token = token.and_then(|token| core::str::from_utf8(token).ok());
        let (Some(path), Some(token)) = (path, token) else {
            return Err(StoreError::Protocol {
                problem: "a watch event without a path and a token",
            });
        };
        // None: of a watch that was dropped meanwhile.
        if let Some(watched) = self.watches.get(token) {
            if self.order.len() < MAX_QUEUED {
                self.enqueue(event(path, token));
            } else {
                for path in watched.clone() {
                    self.enqueue(event(&path, token));
                }
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, event: WatchEvent) {
        if self.queued.insert(event.clone()) {
            self.order.push_back(event);
        }
    }

    pub(super) fn pop(&mut self) -> Option<WatchEvent> {
        let event = self.order.pop_front()?;
        self.queued.remove(&event);
        Some(event)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

fn event(path: &str, token: &str) -> WatchEvent {
    WatchEvent {
        path: path.to_owned(),
        token: token.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut EventQueue, path: &str, token: &str) {
        queue
            .push_payload(format!("{path}\0{token}\0").as_bytes())
            .unwrap();
    }

    fn all(queue: &mut EventQueue) -> Vec<(String, String)> {
        std::iter::from_fn(|| queue.pop())
            .map(|event| (event.path, event.token))
            .collect()
    }

    #[test]
    fn an_event_that_waits_already_is_not_queued_again() {
        let mut queue = EventQueue::default();
        queue.add_watch("/a", "t");
        for path in ["/a", "/a/b", "/a", "/a/b"] {
            push(&mut queue, path, "t");
        }
        assert_eq!(queue.pop().unwrap().path, "/a");
        push(&mut queue, "/a", "t");
        let paths: Vec<String> = all(&mut queue).into_iter().map(|event| event.0).collect();
        assert_eq!(paths, ["/a/b", "/a"]);
    }

    #[test]
    fn a_flood_ends_in_one_event_for_its_watch_and_none_is_lost() {
        let mut queue = EventQueue::default();
        queue.add_watch("/a", "t");
        queue.add_watch("@releaseDomain", "r");
        for number in 0..2 * MAX_QUEUED {
            push(&mut queue, &format!("/a/{number}"), "t");
        }
        push(&mut queue, "@releaseDomain", "r");
        let events = all(&mut queue);
        assert_eq!(events.len(), MAX_QUEUED + 2);
        assert_eq!(events[0].0, "/a/0", "what waits keeps its place");
        assert_eq!(events[MAX_QUEUED].0, "/a");
        assert_eq!(events[MAX_QUEUED + 1].0, "@releaseDomain");
        assert!(queue.queued.is_empty());
    }

    #[test]
    fn more_watches_than_events_are_kept_all_get_their_turn_under_a_flood() {
        let mut queue = EventQueue::default();
        let watches = 4 * MAX_QUEUED;
        for number in 0..watches {
            queue.add_watch(&format!("/{number}"), &number.to_string());
        }
        let fire_all = |queue: &mut EventQueue| {
            for number in 0..watches {
                push(queue, &format!("/{number}"), &number.to_string());
            }
        };
        fire_all(&mut queue);
        let mut seen = HashSet::new();
        // Between two looks everybody writes again; a look takes a few events.
        for _ in 0..watches / 64 {
            for _ in 0..64 {
                seen.insert(queue.pop().unwrap().token);
            }
            fire_all(&mut queue);
            assert_eq!(queue.order.len(), watches, "bounded");
        }
        assert_eq!(seen.len(), watches);
    }

    #[test]
    fn events_of_a_dropped_watch_vanish() {
        let mut queue = EventQueue::default();
        queue.add_watch("/a", "t");
        queue.add_watch("/b", "u");
        push(&mut queue, "/a", "t");
        push(&mut queue, "/b", "u");
        queue.remove_watch("/a", "t");
        push(&mut queue, "/a", "t");
        assert_eq!(all(&mut queue), [("/b".to_owned(), "u".to_owned())]);
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        let mut queue = EventQueue::default();
        for bad in [&b""[..], b"/a\0", b"a b\0t\0", b"/a\0\xff\0"] {
            assert!(queue.push_payload(bad).is_err(), "{bad:?}");
        }
    }
}
