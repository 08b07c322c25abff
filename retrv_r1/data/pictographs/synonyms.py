"""English names of slugs that no table of names has."""

from __future__ import annotations

# Mozilla's slugs have no hyphens; they are its file names.
_FXEMOJI = """
2hearts=two hearts|americasglobe=globe showing americas|anger=anger symbol|angry=angry face
anguish=anguished face|antennawithbars=antenna bars|asiaaustraliaglobe=globe showing asia-australia
astonished=astonished face|aubergine=eggplant|automatedtellermachine=atm sign
bactriancamel=two-hump camel|banknotedollar=dollar banknote|banknoteeuro=euro banknote
banknotepound=pound banknote|banknoteyen=yen banknote|beachumbrella=beach with umbrella
bellcancellation=bell with slash|bicyclist=person biking|billiards=pool 8 ball
blackclubsuit=club suit|blackdiamondsuit=diamond suit|blackspadesuit=spade suit
blackdownpointingdoublearrow=fast down button|blackuppointingdoublearrow=fast up button
blackleftpointingdoublearrow=fast reverse button
blackrightpointingdoublearrow=fast-forward button|blackleftpointingarrow=reverse button
blackrightpointingarrow=play button|blacktelephone=telephone
blackuniversalrecyclingsymbol=recycling symbol|blonde=person blond hair|bookmarktab=bookmark tabs
bolt=high voltage|bow=ribbon|bowing=person bowing|bride=person with veil|bullhorn=megaphone
bunny=rabbit face|catside=cat|cat=cat face|cellphone=mobile phone|celticcross=latin cross
chartdownwardstrend=chart decreasing|chartupwardstrend=chart increasing
chartupwardstrendyen=chart increasing with yen|chilipepper=hot pepper|chineseflag=flag of china
circledideographaccept=japanese acceptable button
circledideographadvantage=japanese bargain button
circledideographcongratulation=japanese congratulations button
circledideographsecret=japanese secret button|clamshellmobile=mobile phone with arrow
clap=clapping hands|clock12oclock=twelve o'clock|clock12thirty=twelve-thirty
clock1oclock=one o'clock|clock1thirty=one-thirty|clock2oclock=two o'clock|clock2thirty=two-thirty
clock3oclock=three o'clock|clock3thirty=three-thirty|clock4oclock=four o'clock
clock4thirty=four-thirty|clock5thirty=five-thirty|clock6oclock=six o'clock
clock6thirty=six-thirty|clock7oclock=seven o'clock
closedmailboxlowered=closed mailbox with lowered flag
closedmailboxraised=closed mailbox with raised flag|coldsweat=anxious face with sweat
construction=building construction|constructionsign=construction|darksunglasses=sunglasses
sunglasses=smiling face with sunglasses|keyboard=|wiredkeyboard=keyboard|heartblue=|tramcar=
compression=clamp|confetti=confetti ball|confounded=confounded face|confused=confused face
construct=construction worker|cop=police officer|couplekiss=kiss|crying=crying face
curryandrice=curry rice|daggerknife=dagger|dancer=woman dancing|dash=dashing away
diamondshapewithdotinside=diamond with a dot|disappointed=disappointed face
dissapointedrelief=sad but relieved face|dog=dog face|dogside=dog|donotlittersymbol=no littering
doubleexclaimationmark=double exclamation mark|doveofpeace=dove|dragonhead=dragon face
dragonside=dragon|dromedarycamel=camel|earofmaize=ear of corn|earofrice=sheaf of rice
eightpointedblackstar=eight-pointed star|eightspokedasterix=eight-spoked asterisk
electrictorch=flashlight|envelopedownarrowabove=envelope with arrow
europeafricaglobe=globe showing europe-africa|europeancastle=castle
europeanpostoffice=post office|evergreen=evergreen tree
exclaimationquestionmark=exclamation question mark|expressionless=expressionless face
fallingleaf=fallen leaf|fatherchristmas=santa claus|fearful=fearful face
fireworksparkler=sparkler|fishcakeswirl=fish cake with swirl|fishingpoleandfish=fishing pole
fistedhand=oncoming fist|flexbicep=flexed biceps|flushed=flushed face|forkknife=fork and knife
framewithpicture=framed picture|frontfacingchick=front-facing baby chick|frown=person frowning
gem=gem stone|girlgirl=women holding hands|guyguy=men holding hands
girlguy=woman and man holding hands|gma=old woman|gpa=old man|golfer=person golfing
greatbritainflag=flag of united kingdom|grimacing=grimacing face|grin=grinning face
grinsquint=grinning squinting face|grinsweat=grinning face with sweat
grintears=face with tears of joy|grinwideeyes=grinning face with big eyes
grineyes=grinning face with smiling eyes|guapimao=person with skullcap|guardsman=guard
haircut=person getting haircut|halo=smiling face with halo|hampster=hamster
handheldvideocamera=video camera|hands=raising hands|headmassage=person getting massage
heartarrow=heart with arrow|heartgreen=green heart|heartpurple=purple heart
heartyellow=yellow heart|heartribbon=heart with ribbon|hearteyes=smiling face with heart-eyes
heavyexclaimationmarksymbol=red exclamation mark|heavymultiplicationsymbol=multiply
heavylatincross=latin cross|heels=high-heeled shoe|highbrightness=bright button
lowbrightness=dim button|highspeedtrainbulletnose=bullet train|hocho=kitchen knife
hourglassflowingsand=hourglass not done|hourglass=hourglass done|housebuilding=house
housebuildings=houses|hundredpointssymbol=hundred points|hushed=hushed face
imp=angry face with horns|informationsource=information
inputsymbolforlatincapitalletters=input latin uppercase
inputsymbolforlatinletters=input latin letters
inputsymbolforlatinsmallletters=input latin lowercase|inputsymbolfornumbers=input numbers
inputsymbolforsymbols=input symbols|italianflag=flag of italy|japanflag=flag of japan
franceflag=flag of france|russianflag=flag of russia|spanishflag=flag of spain
koreaflag=flag of south korea|izakayalantern=red paper lantern|japaneseangrymask=goblin
kissclosedeyes=kissing face with closed eyes|kisseyes=kissing face with smiling eyes
kissing=face blowing a kiss|largebluecircle=blue circle|largeredcircle=red circle
leaffluttering=leaf fluttering in wind|leftspeechbubble=left speech bubble
leftmagnifyingglass=magnifying glass tilted left
rightmagnifyingglass=magnifying glass tilted right
leftwardsarrowwithhook=right arrow curving left|rightwardsarrowwithhook=left arrow curving right
leftwardsblackarrow=left arrow|blackrightwardsarrow=right arrow|leopardside=leopard
linksymbol=link|lips=mouth|lock=locked|lockandkey=locked with key|lockwithinkpen=locked with pen
openlock=unlocked|loudlycrying=loudly crying face|lowerleftpaintbrush=paintbrush
lowerleftcrayon=crayon|lowerleftfountainpen=fountain pen|lowerleftpen=pen
mahjong=mahjong red dragon|maninbusinesssuitlevitating=person in suit levitating
manltepiececlock=mantelpiece clock|mansshirt=t-shirt|mensshoe=man's shoe|mensrunner=running shoe
medicalmask=face with medical mask|mediumblackcircle=black circle
mediumwhitecircle=white circle|menssymbol=men's room|womenssymbol=women's room
meridianglobe=globe with meridians|minidisc=computer disk|monkeyhear=hear-no-evil monkey
monkeysee=see-no-evil monkey|monkeyspeak=speak-no-evil monkey|mouse=mouse face|mouseside=mouse
moyai=moai|multiplemusicalnotes=musical notes|negativesquaredab=ab button
negativesquaredcrossmark=cross mark button|negativesquaredlatincapitalletterp=p button
negativesquaredlatincaptiala=a button|negativesquaredlatincaptialb=b button
negativesquaredlatincaptialo=o button|neutral=neutral face|newmoonwithface=new moon face
noentrysign=prohibited|nogesture=person gesturing no|okgesture=person gesturing ok
nomouth=face without mouth|nonpotablewatersymbol=non-potable water
nooneunder18symbol=no one under eighteen|northeastarrow=up-right arrow
northwestarrow=up-left arrow|southeastarrow=down-right arrow|nosmokingsymbol=no smoking
smokingsymbol=cigarette|notebookdecorativecover=notebook with decorative cover|omsymbol=om
onarrowleftright=on! arrow|soonwithrightarrow=soon arrow|backwithleftwardsarrow=back arrow
endwithleftwardsarrow=end arrow|topwithupwardsarrow=top arrow
openmailboxlowered=open mailbox with lowered flag|openmailboxraised=open mailbox with raised flag
openmouth=face with open mouth|opticaldisc=optical disk|outbox=outbox tray
pensive=pensive face|perservere=persevering face|personalcomputer=laptop|pig=pig face|pigside=pig
pigsnout=pig nose|playingcardblackjoker=joker|policecarsrevolvinglight=police car light
poo=pile of poo|potablewatersystem=potable water|pout=person pouting|pouting=enraged face
pray=folded hands|present=wrapped gift|putlitterinitsplacesymbol=litter in bin sign
racecar=racing car|raincloud=cloud with rain|raisedhandsfingerssplayed=hand with fingers splayed
raisedhandpartfingers=vulcan salute|relieved=relieved face|ringingbell=bell
rightangerbubble=right anger bubble|leftspeechbubble=left speech bubble|rowboat=person rowing boat
running=person running|saggitarius=sagittarius|scorpius=scorpio|sakebottleandcup=sake
sandals=woman's sandal|schoolsatchel=backpack|screamfear=face screaming in fear|sheep=ewe
silhouetteohjapan=map of japan|sixpointedstarwithdot=dotted six-pointed star
skiandskiboot=skis|sleeping=sleeping face|sleepy=sleepy face|sleuthspy=detective
sliceofpizza=pizza|smalfrown=slightly frowning face|smallfrown=slightly frowning face
smallsmile=slightly smiling face|smileeyes=smiling face with smiling eyes|smirk=smirking face
snowcloud=cloud with snow|snowmountains=snow-capped mountain|speaker=speaker low volume
speaker3soundwaves=speaker high volume|speakeronesoundwave=speaker medium volume
speakercancellation=muted speaker|speakingheadinsilhouette=speaking head
speechbubble=speech balloon|spiralcalendarpad=spiral calendar|spurtingwhale=spouting whale
squaredcl=cl button|squaredcool=cool button|squaredfree=free button|squaredid=id button
squarednew=new button|squaredng=ng button|squaredok=ok button|squaredsos=sos button
squaredup=up! button|squaredvs=vs button|squaredkatakanakoko=japanese here button
squaredkatakanasa=japanese service charge button|steamlocomotive=locomotive
stormcloud=cloud with lightning|studiomic=studio microphone|sunraincloud=sun behind rain cloud
sunsetoverbuildings=sunset|surfer=person surfing|sweatsplash=sweat droplets
swimming=person swimming|telephonereceiver2=telephone receiver|tennisball=tennis
thoughtbaloon=thought balloon|tiger=tiger face|tigerside=tiger|tired=tired face|tie=necktie
tongueout=face with tongue|tongueoutwink=winking face with tongue|toykotower=tokyo tower
triangularflagonpost=triangular flag|triumph=face with steam from nose
turban=person wearing turban|twistedrightwardsarrows=shuffle tracks button
unamused=unamused face|videocasette=videocassette|waitress=person tipping hand
walking=person walking|waningbibbousmoon=waning gibbous moon|warningsign=warning|wave=water wave
waving=waving hand|weary=weary face|weightlifter=person lifting weights
whiteexclaimationmark=white exclamation mark|whitestar=star|whitesun=sun
whitesunbehindcloud=sun behind large cloud|whitesunsmallcloud=sun behind small cloud
winking=winking face|womansshirt=woman's clothes|worried=worried face|horse=horse|cow=cow
monkey=monkey|uppointingredtriangle=red triangle pointed up|wolfface=wolf|frog=frog|bear=bear
downpointingredtriangle=red triangle pointed down|pandaface=panda|alienmonster=alien monster
koala=koala|partypopper=party popper|flaginhole=flag in hole|dizzy=dizzy
heavylargecircle=hollow red circle|oncomingautomobile=oncoming automobile
fishingpole=fishing pole|radiobutton=radio button|dango=dango
euro=euro banknote|highspeedtrain=high-speed train
"""
_STREAMLINE = """
champagne-glass-1=|gesturing-ok-1=woman gesturing ok|turkey=flag of türkiye
"""
_OTHERS = """
dizzy-face=face with crossed-out eyes|crazy-face=zany face
man-in-business-suit-levitating=person in suit levitating
game-dice=game die
red-wine-glass=wine glass|flag-for-swaziland=flag of eswatini
flag-for-heard-and-mcdonald-islands=flag of heard & mcdonald islands
"""


def _table(text: str) -> dict[str, str]:
    pairs = (pair.split("=") for line in text.split("\n") for pair in line.split("|") if pair)
    return {slug.strip(): name.strip() for slug, name in pairs}


def synonyms(style: str) -> dict[str, str]:
    """English name by slug for one icon set; an empty name leaves the drawing out."""
    if style == "fxemoji":
        return _table(_FXEMOJI)
    return _table(_OTHERS) | (_table(_STREAMLINE) if style == "streamline-emojis" else {})
