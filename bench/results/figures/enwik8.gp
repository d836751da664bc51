# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# gnuplot bench/results/figures/enwik8.gp, from the root of the repository
set terminal svg size 900,440 font "sans-serif,14" background "white"
set output "bench/results/figures/enwik8.svg"
set datafile separator ","
set title "enwik8 (first 4 MB, bytes), equal parameters, five seeds: mean, smallest, largest"
set xlabel "million tokens"
set ylabel "validation, bits per byte"
set grid lc rgb "#dddddd"
set border 3
set tics nomirror
set key top right
set yrange [1.9:2.7]
data = "bench/results/2026-11-22-enwik8.csv"
curve(mixer) = sprintf("< awk -F, '$1 == \"%s\" { n[$3]++; s[$3] += $4; if (!($3 in a) || $4 < a[$3]) a[$3] = $4; if ($4 > b[$3]) b[$3] = $4 } END { for (k in n) print k \",\" s[k] / n[k] \",\" a[k] \",\" b[k] }' %s | sort -n", mixer, data)
plot curve("mamba2") using ($1 * 0.032768):2:3:4 with yerrorlines pt 7 ps 0.6 lw 2 lc rgb "#1f77b4" title "Mamba-2", \
     curve("diff_mamba2") using ($1 * 0.032768 + 0.05):2:3:4 with yerrorlines pt 5 ps 0.6 lw 2 lc rgb "#d62728" title "Diff-Mamba-2"
