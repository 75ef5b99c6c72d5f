//! Which values `torch.topk` chooses, equal ones included.

/// Marks the `count` values of the largest magnitudes, as `torch.topk(values.abs(), count)` chooses them on a CPU.
///
/// Where several of one magnitude compete for the last places (usual in adapters trained in 16 bits), the choice is that
/// of the algorithms that torch uses (`native/TopKImpl.h`) as libstdc++ writes them: `std::partial_sort` for few of many,
/// else `std::nth_element`. The values must be finite.
pub(super) fn largest(values: &[f32], count: usize) -> Vec<bool> {
    let mut queue: Vec<Entry> = values.iter().enumerate().map(|(i, v)| (v.abs(), i)).collect();
    if count * 64 <= values.len() {
        heap_select(&mut queue, count);
    } else {
        select(&mut queue, count - 1);
    }
    let mut mask = vec![false; values.len()];
    queue[..count].iter().for_each(|(_, index)| mask[*index] = true);
    mask
}

/// A magnitude and where it is.
type Entry = (f32, usize);

fn before(x: Entry, y: Entry) -> bool {
    x.0 > y.0
}

/// `std::nth_element`: introselect (`bits/stl_algo.h`, `__introselect`).
fn select(queue: &mut [Entry], nth: usize) {
    let (mut first, mut last) = (0, queue.len());
    let mut depth = 2 * queue.len().ilog2();
    while last - first > 3 {
        if depth == 0 {
            heap_select(&mut queue[first..last], nth + 1 - first);
            queue.swap(first, nth);
            return;
        }
        depth -= 1;
        let cut = first + partition(&mut queue[first..last]);
        if cut <= nth { first = cut } else { last = cut }
    }
    let rest = &mut queue[first..last];
    for end in 1..rest.len() {
        let place = (0..end).rev().find(|at| !before(rest[end], rest[*at])).map_or(0, |at| at + 1);
        rest[place..=end].rotate_right(1);
    }
}

/// Partitions around the median of three values, which is put first, and says where the second part begins
/// (`__unguarded_partition_pivot`).
fn partition(part: &mut [Entry]) -> usize {
    let (a, b, c) = (1, part.len() / 2, part.len() - 1);
    let precedes = |x: usize, y: usize| before(part[x], part[y]);
    let median = if precedes(a, b) {
        if precedes(b, c) {
            b
        } else if precedes(a, c) {
            c
        } else {
            a
        }
    } else if precedes(a, c) {
        a
    } else if precedes(b, c) {
        c
    } else {
        b
    };
    part.swap(0, median);
    let (pivot, mut left, mut right) = (part[0], 1, part.len());
    loop {
        while before(part[left], pivot) {
            left += 1;
        }
        right -= 1;
        while before(pivot, part[right]) {
            right -= 1;
        }
        if left >= right {
            return left;
        }
        part.swap(left, right);
        left += 1;
    }
}

/// Moves the first `count` in order to the front, as a heap (`__heap_select`, the part of `std::partial_sort` that
/// chooses).
fn heap_select(queue: &mut [Entry], count: usize) {
    if count == 0 {
        return;
    }
    if count > 1 {
        for parent in (0..=(count - 2) / 2).rev() {
            let value = queue[parent];
            sift(&mut queue[..count], parent, value);
        }
    }
    for at in count..queue.len() {
        if before(queue[at], queue[0]) {
            let value = queue[at];
            queue[at] = queue[0];
            sift(&mut queue[..count], 0, value);
        }
    }
}

/// Puts `value` into the heap, whose root's place `hole` is free (`__adjust_heap`, then `__push_heap`).
fn sift(heap: &mut [Entry], mut hole: usize, value: Entry) {
    let (top, len) = (hole, heap.len());
    let mut child = hole;
    while child < (len - 1) / 2 {
        child = 2 * (child + 1);
        if before(heap[child], heap[child - 1]) {
            child -= 1;
        }
        heap[hole] = heap[child];
        hole = child;
    }
    if len.is_multiple_of(2) && child == (len - 2) / 2 {
        child = 2 * child + 1;
        heap[hole] = heap[child];
        hole = child;
    }
    while hole > top && before(heap[(hole - 1) / 2], value) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of the chosen places, and their exclusive or.
    fn chosen(values: &[f32], count: usize) -> (usize, usize) {
        let mask = largest(values, count);
        let places = || mask.iter().enumerate().filter(|(_, kept)| **kept).map(|(place, _)| place);
        assert_eq!(places().count(), count);
        (places().sum(), places().fold(0, |x, place| x ^ place))
    }

    #[test]
    fn of_equal_magnitudes_those_are_kept_that_torch_keeps() {
        // Values in 0..levels from a linear congruential generator; what torch 2.9.0 (Linux, CPU) chooses of them.
        for (length, levels, count, sum, xor) in [
            (10, 3, 4, 10, 0),
            (1000, 7, 371, 186_372, 1000),
            (1000, 7, 10, 187, 17),
            (5000, 20, 2500, 6_321_071, 1955),
            (4096, 1, 2000, 6_127_592, 1360),
            (100, 5, 99, 4928, 22),
            (3, 2, 2, 2, 2),
            (7, 1, 7, 21, 7),
        ] {
            let mut state = 1u64;
            let mut next = || {
                state = (state * 1_103_515_245 + 12_345) % (1 << 31);
                let value = ((state >> 16) % levels) as f32;
                if state & 1 == 1 { -value } else { value }
            };
            let values: Vec<_> = (0..length).map(|_| next()).collect();
            assert_eq!(chosen(&values, count), (sum, xor), "{count} of {length}");
        }
    }

    #[test]
    fn an_order_that_defeats_the_median_of_three_falls_back_to_a_heap_as_in_torch() {
        // What an adversary (McIlroy, "A Killer Adversary for Quicksort") gives for the 128th of 512, each value taken by two;
        // what torch 2.9.0 chooses of it.
        let value = |place: usize| match place {
            0..36 if place % 2 == 1 => 256 - place / 2,
            256..274 => 512 - place,
            _ => 0,
        };
        let values: Vec<_> = (0..512).map(|place| value(place) as f32).collect();
        assert_eq!(chosen(&values, 128), (12_583, 3));
    }

    #[test]
    fn none_and_all_can_be_chosen() {
        assert_eq!(largest(&[1.0, 2.0], 0), [false, false]);
        assert_eq!(largest(&[1.0, -2.0], 2), [true, true]);
        assert!(largest(&[], 0).is_empty());
    }
}
