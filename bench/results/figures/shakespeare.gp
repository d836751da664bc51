# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# gnuplot bench/results/figures/shakespeare.gp, from the root of the repository
set terminal svg size 900,440 font "sans-serif,14" background "white"
set output "bench/results/figures/shakespeare.svg"
set datafile separator ","
set title "Shakespeare, bytes: Mamba-2 and Diff-Mamba-2 of equal parameters, one curve per seed"
set xlabel "thousand tokens"
set ylabel "validation, bits per byte"
set grid lc rgb "#dddddd"
set border 3
set tics nomirror
set key top right
data = "bench/results/2026-11-22-shakespeare.csv"
curve(mixer, seed) = sprintf("< awk -F, '$1 == \"%s\" && $2 == %d' %s", mixer, seed, data)
seeds = int(system("awk -F, 'NR > 1 { print $2 }' ".data." | sort -u | wc -l"))
plot for [s = 1:seeds] curve("mamba2", s) using ($3 * 2.048):4 with linespoints pt 7 ps 0.5 lw 2 lc rgb "#1f77b4" title (s == 1 ? "Mamba-2" : ""), \
     for [s = 1:seeds] curve("diff_mamba2", s) using ($3 * 2.048):4 with linespoints pt 5 ps 0.5 lw 2 lc rgb "#d62728" title (s == 1 ? "Diff-Mamba-2" : "")
