#!/usr/bin/perl
# A client of chatd.v1 in Perl, with nothing but Perl's own modules, behind the line protocol of
# docs/conformance.md. It was written from docs/protocol.md, whose sections are named below.
#
#     chatd conformance --client "perl clients/adapters/client.pl"
use strict;
use warnings;
use Digest::SHA qw(sha1_base64);
use IO::Select;
use IO::Socket::INET;
use JSON::PP;
use Time::HiRes qw(time);

my $JSON = JSON::PP->new->utf8->canonical->allow_nonref;
my %FOR_GOOD = map { $_ => 1 } 1002, 1003, 1007, 1009, 4000, 4004, 4005;    # section 10
my $TRUE = JSON::PP::true;

my ($config, $socket, $bytes, $fragments);          # the connection
my ($id, %asked);                                   # requests on their way
my ($epoch, $since, $user, $known) = ('', '', '', 0);
my (%held, %listed, %named, %paging);               # by conversation: the seqs that we have, and where it stood
my (%outbox, %refused, $welcomed, $welcomed_at);    # by peer: what is not known to be stored; whether one was refused
my ($failures, $renew, $retry_at, $send_at) = (0, 0, 0, 0);

sub say_line { my ($line) = @_; print $JSON->encode($line), "\n" }
sub fresh_cid { join '-', map { join '', map { sprintf '%x', int rand 16 } 1 .. $_ } 8, 4, 4, 4, 12 }

# ---- WebSocket (section 1, RFC 6455) ---------------------------------------------------------------

sub connect_now {
    my ($host, $port, $path) = $config->{url} =~ m{^ws://([^:/]+):(\d+)(/.*)$} or die "no such URL\n";
    $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port) or return lost(1006);
    $socket->autoflush(1);
    my $key = 'dGhlIHNhbXBsZSBub25jZQ==';
    print $socket join "\r\n", "GET $path HTTP/1.1", "Host: $host:$port", 'Upgrade: websocket', 'Connection: Upgrade',
        "Sec-WebSocket-Key: $key", 'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Protocol: chatd.v1', '', '';
    my $answer = '';
    while ($answer !~ /\r\n\r\n/) { sysread($socket, $answer, 4096, length $answer) or return lost(1006) }
    my $accept = sha1_base64($key . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11') . '=';
    return lost(1006) unless $answer =~ m{^HTTP/1.1 101 } and index($answer, $accept) > 0;
    ($bytes) = $answer =~ /\r\n\r\n(.*)\z/s;
    ($fragments, $id, $welcomed) = ('', 0, 0);
    %paging = %asked = %refused = ();
    post(hello());
}

sub write_frame {
    my ($opcode, $payload) = @_;
    my $length = length $payload;
    my $head = $length < 126 ? pack 'CC', 0x80 | $opcode, 0x80 | $length
             : $length < 65536 ? pack 'CCn', 0x80 | $opcode, 0x80 | 126, $length
             : pack 'CCQ>', 0x80 | $opcode, 0x80 | 127, $length;
    my $mask = pack 'N', int rand 2**32;
    my $cover = substr $mask x ($length / 4 + 1), 0, $length;
    print $socket $head, $mask, $payload ^ $cover if $socket;
}

sub read_frames {
    sysread($socket, $bytes, 65536, length $bytes) or return lost(1006);
    while ($socket and length $bytes >= 2) {
        my ($first, $second) = unpack 'CC', $bytes;
        my ($length, $at) = ($second & 0x7f, 2);
        if ($length == 126) { return if length $bytes < 4; ($length, $at) = (unpack('x2n', $bytes), 4) }
        elsif ($length == 127) { return if length $bytes < 10; ($length, $at) = (unpack('x2Q>', $bytes), 10) }
        return if length $bytes < $at + $length;
        my $payload = substr $bytes, $at, $length;
        $bytes = substr $bytes, $at + $length;
        my $opcode = $first & 0x0f;
        if ($opcode == 8) { write_frame(8, substr $payload, 0, 2); return lost($length >= 2 ? unpack 'n', $payload : 1005) }
        if ($opcode == 9) { write_frame(10, $payload); next }
        next if $opcode > 2;
        $fragments .= $payload;
        if ($first & 0x80) { my $text = $fragments; $fragments = ''; take(eval { $JSON->decode($text) }) }
    }
}

# Section 10: when to come back.
sub lost {
    my ($code) = @_;
    close $socket if $socket;
    my $lived = $welcomed && time - $welcomed_at >= 10;
    my $refused = ($code == 4001 || $code == 4002) && $renew && !$welcomed;
    undef $socket;
    $_->{tried} ||= $_->{sent}, $_->{sent} = 0 for map { @$_ } values %outbox;
    if ($FOR_GOOD{$code} or $refused) { say_line({ event => 'ended', code => $code }); $retry_at = 9**99; return }
    $renew = $code == 4001 || $code == 4002;
    $failures = 0 if $lived;
    my $most = 0.25 * 2**$failures++;
    my $named = $retry_at > time ? $retry_at - time : 0;
    $retry_at = time + $named + ($code == 4008 ? 60 : 0) + rand($most < 30 ? $most : 30);
}

# ---- requests --------------------------------------------------------------------------------------

sub post {
    my ($frame, $about) = @_;
    $frame = { %$frame, id => ++$id };
    $asked{$id} = [$frame, $about];
    write_frame(1, $JSON->encode($frame));
}

# Section 3: conversations that lack something go first; a mark is only good with all of them.
sub hello {
    my %hello = (t => 'hello', v => 1, token => $renew ? $config->{new_token} : $config->{token}, device => 'perl');
    my @missing = grep { $held{$_} < ($listed{$_} // 0) } keys %held;
    my %is_missing = map { $_ => 1 } @missing;
    my @names = (@missing, grep { !$is_missing{$_} } keys %held);
    splice @names, 500 if @names > 500;
    %named = map { $_ => 1 } @names;
    if ($epoch) { $hello{epoch} = $epoch; $hello{cursors} = { map { $_ => $held{$_} } @names } }
    $hello{since} = $since if $since and @missing <= 500;
    return \%hello;
}

# ---- frames: unknown ones are ignored (section 2) --------------------------------------------------

sub take {
    my ($frame) = @_;
    return unless ref $frame eq 'HASH' and defined $frame->{t};
    my $t = $frame->{t};
    if ($t eq 'welcome') { welcome($frame) }
    elsif ($t eq 'entry') { entry($frame->{c}, $frame) }
    elsif ($t eq 'notice' and ($frame->{kind} // '') eq 'drain') { $retry_at = time + $frame->{retry_ms} / 1000 }
    elsif (($t eq 'ok' or $t eq 'err') and my $one = delete $asked{ $frame->{id} // 0 }) {
        my ($request, $about) = @$one;
        if ($request->{t} eq 'history' and ref $about) { $about->($frame) }
        elsif ($request->{t} eq 'hello') { $retry_at = time + $frame->{retry_ms} / 1000 if $frame->{retry_ms} }
        elsif ($about) { answered($about, $frame) }
    }
}

sub welcome {
    my ($page) = @_;
    if (defined $page->{user}) {
        $user = $page->{user};
        if ($epoch and $epoch ne $page->{epoch}) { %held = %listed = (); $known = 0; $since = '' }
        $epoch = $page->{epoch};
    }
    listed($_) for @{ $page->{conversations} };
    return if $page->{more};
    ($since, $known, $welcomed, $welcomed_at, $renew) = ($page->{since}, 1, 1, time, 0);
    flush_outbox();
}

sub listed {
    my ($item) = @_;
    my ($c, $head, $floor) = @$item{qw(c head floor)};
    $held{$c} = $head if $item->{reset};
    $held{$c} //= $known ? 0 : $head;    # it began since the last welcome, or it is for scrolling back
    $listed{$c} = $head;
    $held{$c} = $floor - 1 if $held{$c} < $floor - 1;    # what passed retention is not to be had
    fetch($c) if $item->{page} or (!$named{$c} and $held{$c} < $head);
}

sub fetch {
    my ($c) = @_;
    $paging{$c} ||= [];
    post({ t => 'history', c => $c, after => $held{$c}, limit => 100 }, sub { page($c, $_[0]) });
}

sub page {
    my ($c, $page) = @_;
    return lost(1006) if $page->{t} ne 'ok';
    $held{$c} = $page->{floor} - 1 if $held{$c} < $page->{floor} - 1;
    my $waiting = $page->{more} ? [] : delete $paging{$c};
    my $kept = delete $paging{$c};
    entry($c, $_) for @{ $page->{entries} }, @$waiting;
    if ($page->{more}) { $paging{$c} = $kept; fetch($c) }
}

# Section 3: each seq once; what jumps is fetched after a reconnect, named first.
sub entry {
    my ($c, $entry) = @_;
    my $seq = $entry->{seq};
    $held{$c} //= 0;
    return push @{ $paging{$c} }, $entry if $paging{$c};
    return if $seq <= $held{$c};
    if ($seq > $held{$c} + 1) { $listed{$c} = $seq; return lost(1006) }
    settle($entry->{cid}, { event => 'done', seq => $seq }) if $entry->{cid};
    $held{$c} = $seq;
    say_line({ %$entry, event => 'entry', c => $c });
}

# ---- the outbox (section 5) ------------------------------------------------------------------------

sub flush_outbox {
    return if !$welcomed or !$socket or time < $send_at;
    for my $to (keys %outbox) {
        my $queue = $outbox{$to};
        next if $refused{$to} and grep { $_->{sent} } @$queue;    # what is on its way may yet be refused
        $refused{$to} = 0;
        for my $one (grep { !$_->{sent} } @$queue) {
            post({ %{ $one->{keys} }, $one->{tried} ? (retry => $TRUE) : () }, $one);
            $one->{sent} = 1;
        }
    }
}

sub answered {
    my ($one, $answer) = @_;
    my $keys = $one->{keys};
    if ($answer->{t} eq 'ok') {
        if (!$answer->{dup}) {    # it takes the entry's place
            my $kind = $keys->{t} eq 'send' ? 'message' : $keys->{t};
            my %entry = (%$keys, seq => $answer->{seq}, ts => $answer->{ts}, from => $user, kind => $kind);
            delete $entry{t};
            entry($answer->{c}, \%entry);
        }
        return settle($keys->{cid}, { event => 'done', seq => $answer->{seq} });
    }
    ($one->{sent}, $one->{tried}, $refused{ $keys->{to} }) = (0, 1, 1);
    if ($answer->{code} eq 'blocked') {
        my $is_ours = grep { $_->{keys}{cid} eq $answer->{cid} } map { @$_ } values %outbox;
        post({ t => 'skip', to => $keys->{to}, cid => $answer->{cid} }) unless $is_ours;
        $send_at = time + 0.1 if $send_at < time;
    }
    elsif (defined $answer->{retry_ms}) {
        my $at = time + $answer->{retry_ms} / 1000;
        $send_at = $at if $send_at < $at;
    }
    else { settle($keys->{cid}, { event => 'refused', code => $answer->{code} }) }
}

sub settle {
    my ($cid, $outcome) = @_;
    for my $queue (values %outbox) {
        for my $one (grep { $_->{keys}{cid} eq lc $cid } @$queue) {
            say_line({ %$outcome, n => $one->{n} });
            @$queue = grep { $_ != $one } @$queue;
        }
    }
}

# ---- the application -------------------------------------------------------------------------------

sub app {
    my ($line) = @_;
    my ($do, $n, $to) = delete @$line{qw(do n to)};
    if ($do eq 'connect') { $config = $line; return connect_now() }
    exit 0 if $do eq 'close';
    if ($do eq 'read') { post({ t => 'read', to => $to, seq => $line->{seq} }); return say_line({ event => 'done', n => $n }) }
    if ($do eq 'history') {
        return post({ t => 'history', to => $to, before => $line->{before} },
            sub { say_line({ event => 'done', n => $n, entries => $_[0]{entries} }) });
    }
    push @{ $outbox{$to} }, { n => $n, keys => { t => $do, to => $to, cid => fresh_cid(), %$line } };
    flush_outbox();
}

$SIG{PIPE} = 'IGNORE';    # a line that is gone is read as such
$| = 1;
my $stdin = '';
say_line({ event => 'ready', name => 'Perl, from docs/protocol.md', can => [qw(send edit delete read history)] });
while (1) {
    for my $ready (IO::Select->new(\*STDIN, $socket || ())->can_read(0.02)) {
        if ($ready == \*STDIN) {
            sysread(STDIN, $stdin, 65536, length $stdin) or exit 0;
            app($JSON->decode($1)) while $stdin =~ s/^(.*)\n//;
        }
        elsif ($socket and $ready == $socket) { read_frames() }
    }
    connect_now() if $config and !$socket and time >= $retry_at;
    flush_outbox();
}
