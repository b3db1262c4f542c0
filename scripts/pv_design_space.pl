#!/usr/bin/env perl
# SPDX-License-Identifier: Apache-2.0
# pv_design_space.pl REPORT: what scenarios/pv_design_space.yaml found, as the README's paragraph. Every number and every
# comparison is taken from the report; tests/cli_test.sh compares the README with the committed one.
use strict;
use warnings;
use JSON::PP;

die "usage: pv_design_space.pl results/pv_design_space/report.json\n" unless @ARGV == 1;
open(my $file, '<', $ARGV[0]) or die "$ARGV[0]: $!\n";
my $report = decode_json(do { local $/; <$file> });
my @runs = @{$report->{runs}};

# A metric of the run of a strategy in which one axis has a value and the others are as written.
sub metric {
  my ($strategy, $axis, $value, $name) = @_;
  for my $run (@runs) {
    my $labels = $run->{labels};
    next unless $labels->{strategy} eq $strategy && ($labels->{$axis} // '') eq $value;
    my $metric = $run->{metrics}{$name} // next;
    return $metric->{value};
  }
  die "the report has no $name of $strategy with $axis = $value\n";
}
sub rate { my ($s, $a, $v) = @_; return metric($s, $a, $v, 'io.rate'); }
sub values_of {
  my ($axis) = @_;
  my (%seen, @values);
  for my $run (@runs) {
    my $value = $run->{labels}{$axis} // next;
    push @values, $value unless $value eq 'as written' || $seen{$value}++;
  }
  return @values;
}
sub thousands { return sprintf('%.0f k/s', $_[0] / 1000); }
sub percent { return sprintf('%.0f %%', 100 * $_[0]); }

# The values of an axis at which one rate is at least the other, in words.
sub ahead {
  my ($axis, $rate, $other) = @_;
  my @values = values_of($axis);
  my @ahead = grep { $rate->($_) >= $other->($_) } @values;
  return 'nowhere' unless @ahead;
  return 'everywhere' if @ahead == @values;
  return $ahead[-1] eq $values[-1] && @ahead == grep({ $_ >= $ahead[0] } @values) ? "from $ahead[0] on"
    : 'at ' . join(', ', @ahead) . ' only';
}

my @batches = values_of('map_batch');
my @nics = values_of('nics');
my @sizes = values_of('buffer_size');
my ($one, $most, $large) = ($batches[0], $batches[-1], $sizes[-1]);
my $by_batch = sub { my ($strategy) = @_; return sub { rate($strategy, 'map_batch', $_[0]) } };

my @text;
push @text, sprintf('Batch size: with %s buffer a sync, as Linux drivers have it, PV-IOMMU does %s and nested translation %s. A '
  . 'driver that maps and unmaps %s buffers with one sync takes nested translation to %s and PV-IOMMU with batches to %s; '
  . 'without batches it stays at %s.', $one, thousands(rate('pv_iommu', 'map_batch', $one)),
  thousands(rate('nested', 'map_batch', $one)), $most, thousands(rate('nested', 'map_batch', $most)),
  thousands(rate('pv_batch', 'map_batch', $most)), thousands(rate('pv_iommu', 'map_batch', $most)));
push @text, sprintf('Batched PV-IOMMU passes nested translation under an unchanged driver %s, and under the same driver %s '
  . '(%s of it at %s); without batches it is ahead of the same driver %s.',
  ahead('map_batch', $by_batch->('pv_batch'), sub { rate('nested', 'map_batch', $one) }),
  ahead('map_batch', $by_batch->('pv_batch'), $by_batch->('nested')),
  percent(rate('pv_batch', 'map_batch', $most) / rate('nested', 'map_batch', $most)), $most,
  ahead('map_batch', $by_batch->('pv_iommu'), $by_batch->('nested')));
my ($single, $explicit) = map { metric($_, 'buffer_size', $large, 'cpu.cycles_per_io') } ('pv_iommu', 'pv_order');
push @text, sprintf('Page order: an explicit one makes a %s buffer cost %.0f cycles instead of %.0f (%.1f times as fast; nested '
  . 'translation: %.0f) and its tables %.0f KiB instead of %.0f; at %s the rate is %s of what it was.',
  $large, $explicit, $single, rate('pv_order', 'buffer_size', $large) / rate('pv_iommu', 'buffer_size', $large),
  metric('nested', 'buffer_size', $large, 'cpu.cycles_per_io'),
  map({ metric($_, 'buffer_size', $large, 'memory.table_bytes') / 1024 } ('pv_order', 'pv_iommu')),
  $sizes[0], percent(rate('pv_order', 'buffer_size', $sizes[0]) / rate('pv_iommu', 'buffer_size', $sizes[0])));
my $kept = sub {
  my ($strategy) = @_;
  return join(', ', map { percent(rate($strategy, 'nics', $_) / rate('pv_iommu', 'nics', $_)) } @nics);
};
push @text, sprintf('Locks: with %s vCPUs, one per domain leaves %s of the throughput of one per context, and one per unit %s.',
  join(', ', @nics), $kept->('pv_lock_domain'), $kept->('pv_lock_iommu'));
my ($first, $last) = ($nics[0], $nics[-1]);
sub waiting {
  my ($strategy) = @_;
  return percent(metric($strategy, 'nics', $last, 'cpu.wait_cycles_per_io.locks')
    / metric($strategy, 'nics', $last, 'cpu.cycles_per_io'));
}
push @text, sprintf('With a lock per context %s vCPUs do %.1f times the work of %s and spend %s of their time waiting for the '
  . 'locks that remain; nested translation does %.1f times and waits %s.', $last,
  rate('pv_iommu', 'nics', $last) / rate('pv_iommu', 'nics', $first), $first, waiting('pv_iommu'),
  rate('nested', 'nics', $last) / rate('nested', 'nics', $first), waiting('nested'));
push @text, sprintf('Arena: %d table pages at most for %s contexts of %s buffers, and %d for one context of %s '
  . 'buffers, which an explicit page order makes %d.', metric('pv_iommu', 'nics', $last, 'pv.arena.peak'), $last,
  $sizes[0], metric('pv_iommu', 'buffer_size', $large, 'pv.arena.peak'), $large,
  metric('pv_order', 'buffer_size', $large, 'pv.arena.peak'));

# Lines of at most 120 columns.
my $line = '';
for my $word (split / /, join(' ', @text)) {
  if (length($line) + 1 + length($word) > 120) { print "$line\n"; $line = ''; }
  $line .= ($line eq '' ? '' : ' ') . $word;
}
print "$line\n";
