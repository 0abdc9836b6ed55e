//! The order by labels of selections that are asked for again and again.
//!
//! Labels of an id never change, so neither does the order of a set of ids: who asks for the same set, as a dashboard does
//! every few seconds, need not compare labels again. Nothing here ever becomes wrong, only unused.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

/// Ids of all selections that are remembered, 12 bytes each.
const IDS_MAX: usize = 1 << 20;
/// Smaller ones are sorted sooner than found.
const IDS_MIN: usize = 256;

#[derive(Default)]
pub(crate) struct LabelOrders {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Last used last.
    orders: VecDeque<Order>,
    ids: usize,
}

struct Order {
    /// Ascending.
    ids: Arc<[i64]>,
    /// Places in `ids`, by labels.
    places: Arc<[u32]>,
}

impl LabelOrders {
    /// `found` sorted by labels. `compare`: of two of its values.
    pub fn sorted<T>(
        &self,
        mut found: Vec<(i64, T)>,
        compare: impl Fn(&T, &T) -> std::cmp::Ordering,
    ) -> Vec<(i64, T)> {
        if !(IDS_MIN..IDS_MAX).contains(&found.len()) {
            found.sort_by(|a, b| compare(&a.1, &b.1));
            return found;
        }
        found.sort_unstable_by_key(|f| f.0);
        let places = self.known(&found).unwrap_or_else(|| {
            let mut places: Vec<u32> = (0..found.len() as u32).collect();
            places.sort_by(|a, b| compare(&found[*a as usize].1, &found[*b as usize].1));
            let places: Arc<[u32]> = places.into();
            self.remember(found.iter().map(|f| f.0).collect(), places.clone());
            places
        });
        let mut slots: Vec<Option<(i64, T)>> = found.into_iter().map(Some).collect();
        places.iter().filter_map(|place| slots[*place as usize].take()).collect()
    }

    fn known<T>(&self, found: &[(i64, T)]) -> Option<Arc<[u32]>> {
        let mut held = self.held.lock();
        let same = |o: &Order| o.ids.len() == found.len() && o.ids.iter().zip(found).all(|(a, b)| *a == b.0);
        let at = held.orders.iter().position(same)?;
        let order = held.orders.remove(at)?;
        let places = order.places.clone();
        held.orders.push_back(order);
        Some(places)
    }

    fn remember(&self, ids: Arc<[i64]>, places: Arc<[u32]>) {
        let mut held = self.held.lock();
        held.ids += ids.len();
        held.orders.push_back(Order { ids, places });
        while held.ids > IDS_MAX
            && let Some(oldest) = held.orders.pop_front()
        {
            held.ids -= oldest.ids.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_selection_comes_in_the_order_of_an_unknown_one_and_memory_is_bounded() {
        let orders = LabelOrders::default();
        let selection = |n: i64, from: i64| -> Vec<(i64, String)> {
            (from..from + n).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64), i.to_string())).collect()
        };
        for (n, from) in [(10, 0), (300, 0), (301, 0), (300, 7), (300, 0), (300, 0), (900_000, 5), (300, 0)] {
            let mut wanted = selection(n, from);
            wanted.sort_by(|a, b| a.1.cmp(&b.1));
            assert_eq!(orders.sorted(selection(n, from), String::cmp), wanted);
            assert!(orders.held.lock().ids <= IDS_MAX);
        }
        assert_eq!(orders.held.lock().orders.len(), 4);
        orders.sorted(selection(900_000, 9), String::cmp);
        assert_eq!(orders.held.lock().orders.len(), 2);
    }
}
